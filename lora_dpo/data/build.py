"""From a recipe's data section to tokenised splits: read, lint, split, tokenise, fit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_dpo.console import tracked
from lora_dpo.data.chat import TokenisedPair, TurnEncoder, check_turns
from lora_dpo.data.groups import merge_groups
from lora_dpo.data.length import fit_length
from lora_dpo.data.lint import lint
from lora_dpo.data.manifest import split_manifest, write_manifest, write_pairs, write_questions
from lora_dpo.data.near_duplicates import NearDuplicate, near_duplicates
from lora_dpo.data.pair import Pair
from lora_dpo.data.question import Question, distinct_questions, divide_questions
from lora_dpo.data.sources import load_pairs
from lora_dpo.data.split import overlap, split_by_group
from lora_dpo.errors import UserError
from lora_dpo.recipe.schema import Recipe, Source, SplitName

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PAIRS_CHECKED = 8


@dataclass(frozen=True, slots=True)
class Prepared:
    """All that a training and its evaluation read.

    Args:
        splits: Tokenised pairs of `train`, `validation` and `test`.
        questions: The questions of each split, as far as the data lists all their answers.
        encoder: How turns became tokens.
        formats: Names of the recognised formats.
        dropped: Pairs and rows left out, by reason.
        truncated: Pairs whose prompt was cut from the left.
        overlap: Groups that stand in more than one split; 0 unless something is broken.
        near_duplicates: Prompts of different splits that are nearly the same.
        bad_rows: Where the first skipped rows stand, and what is wrong with them.
    """

    splits: dict[SplitName, list[TokenisedPair]]
    questions: dict[SplitName, list[Question]]
    encoder: TurnEncoder
    formats: str
    dropped: Counter[str]
    truncated: int
    overlap: int
    near_duplicates: list[NearDuplicate]
    bad_rows: list[str]

    def summary(self) -> dict[str, Any]:
        """Returns counts and hashes with the stable keys of `lora-dpo data --json`."""
        manifest = split_manifest(self._pairs())
        groups = {pair.pair.group for pairs in self.splits.values() for pair in pairs}
        return {
            "pairs": sum(map(len, self.splits.values())),
            "groups": len(groups),
            "splits": {
                split: {key: entry[key] for key in ("pairs", "groups", "hash")} for split, entry in manifest.items()
            },
            "questions": {split: len(questions) for split, questions in self.questions.items()},
            "dropped": dict(self.dropped),
            "truncated": self.truncated,
            "overlap": self.overlap,
            "near_duplicates": len(self.near_duplicates),
        }

    def write(self, folder: Path) -> None:
        """Writes `pairs.jsonl`, `splits.json` and, where there are questions, `questions.jsonl`."""
        write_pairs(folder / "pairs.jsonl", self._pairs())
        if any(self.questions.values()):
            write_questions(folder / "questions.jsonl", self.questions)
        write_manifest(folder / "splits.json", split_manifest(self._pairs()))

    def _pairs(self) -> dict[SplitName, list[Pair]]:
        return {split: [pair.pair for pair in pairs] for split, pairs in self.splits.items()}


def prepare(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> Prepared:
    """Carries out a recipe's data section.

    Args:
        recipe: The recipe.
        tokenizer: The model's tokenizer.

    Raises:
        UserError: The data cannot be read, tokenised soundly, or divided as asked.
    """
    return _prepare(recipe, tokenizer, trains=True)


def prepare_test(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> Prepared:
    """Carries out a data section of which nothing is trained on: its sources are for testing only.

    Args:
        recipe: The recipe.
        tokenizer: The model's tokenizer.

    Raises:
        UserError: The data cannot be read or tokenised soundly, or no pair of it is usable.
    """
    return _prepare(recipe, tokenizer, trains=False)


def _prepare(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, *, trains: bool) -> Prepared:
    loaded, sources = load_pairs(recipe.data), recipe.data.sources()
    order = _held_out_first(sources)
    merged = merge_groups([pair for number in order for pair in loaded.by_source[number]])
    clean, dropped = _lint_sources(merged, len(sources))
    if not trains and not any(clean):
        raise _nothing_usable(sources, dropped)
    splits = split_by_group(clean, sources, recipe.data.split, recipe.data.limit, trains=trains)
    report = loaded.report
    dropped += splits.dropped + Counter(bad_row=report.bad_rows, no_preference=report.rows_without_pair)
    encoder = TurnEncoder(tokenizer, recipe.model.template)
    fitted: dict[SplitName, list[TokenisedPair]] = {}
    truncated = 0
    for split, pairs in splits.pairs.items():
        encoded = _encode(encoder, pairs, split)
        check_turns(encoder, encoded[:_PAIRS_CHECKED])
        fit = fit_length(encoded, recipe.dpo.max_length, recipe.data.over_length, tokenizer.bos_token_id)
        if pairs and not fit.pairs:
            raise UserError(
                f"Every pair of the {split} split is longer than dpo.max_length {recipe.dpo.max_length}.",
                fix=f"Raise it to at least {min(pair.length for pair in encoded)}.",
            )
        fitted[split] = fit.pairs
        truncated += fit.truncated
        dropped += Counter(over_length=fit.dropped)
    kept = {split: [pair.pair for pair in pairs] for split, pairs in fitted.items()}
    questions = distinct_questions(sorted(loaded.questions, key=lambda one: order.index(one.source)), merged)
    return Prepared(
        splits=fitted,
        questions=divide_questions(questions, sources, kept),
        encoder=encoder,
        formats=", ".join(dict.fromkeys(name for names in loaded.formats for name in names)),
        dropped=dropped,
        truncated=truncated,
        overlap=overlap(kept),
        near_duplicates=near_duplicates(kept),
        bad_rows=report.reasons,
    )


def _held_out_first(sources: Sequence[Source]) -> list[int]:
    """Returns the sources' numbers: of what is repeated the first is kept, which training must not take from a test."""
    return sorted(range(len(sources)), key=lambda number: sources[number].use in {"auto", "train"})


def _lint_sources(pairs: list[Pair], sources: int) -> tuple[list[list[Pair]], Counter[str]]:
    """Lints all sources as one, since they may repeat or contradict each other, and divides them again."""
    clean, dropped = lint(pairs)
    divided: list[list[Pair]] = [[] for _ in range(sources)]
    for pair in clean:
        divided[pair.source].append(pair)
    return divided, Counter(dropped)


def _nothing_usable(sources: Sequence[Source], dropped: Counter[str]) -> UserError:
    return UserError(
        "the test set holds no usable pair",
        why=f"Left out: {', '.join(f'{count} {reason}' for reason, count in dropped.items())}.",
        fix="Name a file whose rows have a better and a worse answer.",
        where=", ".join(source.path for source in sources),
    )


def _encode(encoder: TurnEncoder, pairs: Sequence[Pair], split: str) -> list[TokenisedPair]:
    return list(tracked(encoder.encode(pairs), f"tokenising {split}", total=len(pairs)))
