"""From a recipe's data to tokenised splits: read, lint, split, tokenise, fit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from lora_dpo.console import tracked
from lora_dpo.data.chat import TokenisedExample, TokenisedPair, TurnEncoder, check_turns
from lora_dpo.data.example import Example
from lora_dpo.data.groups import merge_groups
from lora_dpo.data.kept_sides import kept_sides
from lora_dpo.data.length import fit_length
from lora_dpo.data.lint import lint
from lora_dpo.data.manifest import Unit, split_manifest, write_manifest, write_pairs, write_questions
from lora_dpo.data.near_duplicates import NearDuplicate, near_duplicates
from lora_dpo.data.pair import Pair
from lora_dpo.data.question import Question, distinct_questions, divide_questions
from lora_dpo.data.sources import LoadedPairs, load_pairs
from lora_dpo.data.split import Splits, overlap, split_by_group
from lora_dpo.errors import UserError
from lora_dpo.recipe.schema import Recipe, Source, SplitName

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T", TokenisedPair, TokenisedExample)
Item = TypeVar("Item", Pair, Example)

_CHECKED = 8


@dataclass(frozen=True, slots=True)
class PreparedData(Generic[T]):
    """What the data of both stages has in common.

    Args:
        splits: Tokenised pairs (or examples) of `train`, `validation` and `test`.
        encoder: How turns became tokens.
        formats: Names of the recognised formats.
        dropped: Pairs and rows left out, by reason.
        truncated: Pairs whose prompt was cut from the left.
        overlap: Groups that stand in more than one split; 0 unless something is broken.
        near_duplicates: Prompts of different splits that are nearly the same.
        bad_rows: Where the first skipped rows stand, and what is wrong with them.
    """

    unit: ClassVar[Unit]
    splits: dict[SplitName, list[T]]
    encoder: TurnEncoder
    formats: str
    dropped: Counter[str]
    truncated: int
    overlap: int
    near_duplicates: list[NearDuplicate]
    bad_rows: list[str]

    def summary(self) -> dict[str, Any]:
        """Returns counts and hashes with the stable keys of `lora-dpo data --json`."""
        manifest = split_manifest(self.untokenised, self.unit)
        groups = {one.group for split in self.splits.values() for one in split}
        return {
            self.unit: sum(map(len, self.splits.values())),
            "groups": len(groups),
            "splits": {
                split: {key: entry[key] for key in (self.unit, "groups", "hash")} for split, entry in manifest.items()
            },
            **self.further_counts(),
            "dropped": dict(self.dropped),
            "truncated": self.truncated,
            "overlap": self.overlap,
            "near_duplicates": len(self.near_duplicates),
        }

    @property
    def untokenised(self) -> dict[SplitName, list[Any]]:
        """The splits as they were before they became tokens."""
        raise NotImplementedError

    def further_counts(self) -> dict[str, Any]:
        """Returns counts that only one stage's data has."""
        return {}

    def remarks(self) -> list[str]:
        """Returns what a reader of the counts should know besides, a line each."""
        return []

    def write(self, folder: Path) -> None:
        """Writes the data, and `splits.json`."""
        write_manifest(folder / "splits.json", split_manifest(self.untokenised, self.unit))


@dataclass(frozen=True, slots=True)
class Prepared(PreparedData[TokenisedPair]):
    """All that a training with preferences and its evaluation read.

    Args:
        questions: The questions of each split, as far as the data lists all their answers.
    """

    unit: ClassVar[Unit] = "pairs"
    questions: dict[SplitName, list[Question]]

    @property
    def untokenised(self) -> dict[SplitName, list[Pair]]:
        """The pairs of each split."""
        return {split: [pair.pair for pair in pairs] for split, pairs in self.splits.items()}

    def further_counts(self) -> dict[str, Any]:
        """Returns how many questions each split has."""
        return {"questions": {split: len(questions) for split, questions in self.questions.items()}}

    def remarks(self) -> list[str]:
        """Returns how many questions there are for multiple choice."""
        counts = ", ".join(f"{len(questions):,} {split}" for split, questions in self.questions.items())
        asked = any(self.questions.values())
        return [f"Questions with all their answers, for multiple choice: {counts}."] if asked else []

    def write(self, folder: Path) -> None:
        """Writes `pairs.jsonl`, `splits.json` and, where there are questions, `questions.jsonl`."""
        write_pairs(folder / "pairs.jsonl", self.untokenised)
        if any(self.questions.values()):
            write_questions(folder / "questions.jsonl", self.questions)
        PreparedData.write(self, folder)


@dataclass(frozen=True, slots=True)
class Divided:
    """A recipe's preferences, divided but not tokenised.

    Args:
        loaded: What was read.
        merged: All pairs, in merged groups.
        splits: The usable ones of each split.
        dropped: Pairs and rows left out, by reason.
    """

    loaded: LoadedPairs
    merged: list[Pair]
    splits: Splits[Pair]
    dropped: Counter[str]


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
    divided, sources = divide_pairs(recipe, trains=trains), recipe.data.sources()
    loaded, order = divided.loaded, held_out_first(sources)
    encoder = TurnEncoder(tokenizer, recipe.model.template)
    encoded = {
        split: list(tracked(encoder.encode(pairs), f"tokenising {split}", total=len(pairs)))
        for split, pairs in divided.splits.pairs.items()
    }
    fitted = fit(encoder, encoded, recipe, "dpo.max_length", recipe.dpo.max_length)
    kept = {split: [pair.pair for pair in pairs] for split, pairs in fitted.splits.items()}
    questions = distinct_questions(sorted(loaded.questions, key=lambda one: order.index(one.source)), divided.merged)
    return Prepared(
        splits=fitted.splits,
        questions=divide_questions(questions, sources, kept),
        encoder=encoder,
        formats=", ".join(dict.fromkeys(name for names in loaded.formats for name in names)),
        dropped=divided.dropped + fitted.dropped,
        truncated=fitted.truncated,
        overlap=overlap(kept),
        near_duplicates=near_duplicates(kept),
        bad_rows=loaded.report.reasons,
    )


def divide_pairs(recipe: Recipe, *, trains: bool = True) -> Divided:
    """Reads, lints and divides a recipe's preferences.

    Args:
        recipe: The recipe.
        trains: Whether there is to be a train split, whatever the sources are for.

    Raises:
        UserError: The data cannot be read, or divided as asked.
    """
    loaded, sources = load_pairs(recipe.data), recipe.data.sources()
    merged = merge_groups([pair for number in held_out_first(sources) for pair in loaded.by_source[number]])
    clean, dropped = lint(merged)
    if not trains and not clean:
        raise _nothing_usable(sources, dropped)
    divided = by_source(clean, len(sources))
    kept = kept_sides(recipe.data.split.like, clean)
    splits = split_by_group(divided, sources, recipe.data.split, recipe.data.limit, trains=trains, kept=kept)
    report = loaded.report
    unread = Counter(bad_row=report.bad_rows, no_preference=report.rows_without_pair)
    return Divided(loaded, merged, splits, Counter(dropped) + splits.dropped + unread)


@dataclass(frozen=True, slots=True)
class FittedSplits(Generic[T]):
    """Splits whose every sequence fits, and how many pairs (or examples) were dropped or cut for that."""

    splits: dict[SplitName, list[T]]
    dropped: Counter[str]
    truncated: int


def fit(
    encoder: TurnEncoder, encoded: Mapping[SplitName, list[T]], recipe: Recipe, key: str, longest: int
) -> FittedSplits[T]:
    """Checks that tokenised splits are sound, and makes them fit.

    Args:
        encoder: What has tokenised them.
        encoded: The splits.
        recipe: The recipe, which says what becomes of what is too long.
        key: The recipe's key for the longest sequence.
        longest: Its value, in tokens.

    Raises:
        UserError: Tokens are not sound, or no sequence of a split fits.
    """
    splits: dict[SplitName, list[T]] = {}
    dropped, truncated = 0, 0
    for split, given in encoded.items():
        check_turns(encoder, given[:_CHECKED])
        found = fit_length(given, longest, recipe.data.over_length, encoder.tokenizer.bos_token_id, key=key)
        if given and not found.pairs:
            raise UserError(
                f"Every {given[0].noun} of the {split} split is longer than {key} {longest}.",
                fix=f"Raise it to at least {min(one.length for one in given)}.",
            )
        splits[split] = found.pairs
        truncated += found.truncated
        dropped += found.dropped
    return FittedSplits(splits, +Counter(over_length=dropped), truncated)


def held_out_first(sources: Sequence[Source]) -> list[int]:
    """Returns the sources' numbers: of what is repeated the first is kept, which training must not take from a test."""
    return sorted(range(len(sources)), key=lambda number: sources[number].use in {"auto", "train"})


def by_source(clean: Sequence[Item], sources: int) -> list[list[Item]]:
    """Divides what was linted as one, since sources may repeat or contradict each other, by its source again."""
    divided: list[list[Item]] = [[] for _ in range(sources)]
    for one in clean:
        divided[one.source].append(one)
    return divided


def _nothing_usable(sources: Sequence[Source], dropped: Counter[str]) -> UserError:
    return UserError(
        "the test set holds no usable pair",
        why=f"Left out: {', '.join(f'{count} {reason}' for reason, count in dropped.items())}.",
        fix="Name a file whose rows have a better and a worse answer.",
        where=", ".join(source.path for source in sources),
    )
