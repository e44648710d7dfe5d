"""From a recipe's SFT section to tokenised splits, by the steps that preferences take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from lora_dpo.console import note, tracked
from lora_dpo.data.answers import load_examples
from lora_dpo.data.build import PreparedData, by_source, divide_pairs, fit, held_out_first
from lora_dpo.data.chat import TokenisedExample, TurnEncoder
from lora_dpo.data.example import Example
from lora_dpo.data.groups import merge_groups
from lora_dpo.data.lint import lint_examples
from lora_dpo.data.manifest import Unit, write_examples
from lora_dpo.data.near_duplicates import near_duplicates
from lora_dpo.data.pair import group_of
from lora_dpo.data.sources import NotThereError
from lora_dpo.data.split import overlap, split_by_group
from lora_dpo.recipe.schema import Recipe, SplitName

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class PreparedExamples(PreparedData[TokenisedExample]):
    """All that an SFT training and its evaluation read."""

    unit: ClassVar[Unit] = "examples"

    @property
    def untokenised(self) -> dict[SplitName, list[Example]]:
        """The examples of each split."""
        return {split: [one.example for one in examples] for split, examples in self.splits.items()}

    def write(self, folder: Path) -> None:
        """Writes `examples.jsonl` and `splits.json`."""
        write_examples(folder / "examples.jsonl", self.untokenised)
        PreparedData.write(self, folder)


def prepare_examples(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> PreparedExamples:
    """Carries out the data part of a recipe's SFT stage.

    Questions are divided as those of the preferences are, and one that the preferences hold out is held out here too:
    what the DPO stage is tested on must not have been learnt before it.

    Args:
        recipe: The recipe of the SFT stage.
        tokenizer: The model's tokenizer.

    Raises:
        UserError: The data cannot be read, tokenised soundly, or divided as asked.
    """
    loaded, sources = load_examples(recipe), recipe.sft.sources()
    merged = merge_groups([one for number in held_out_first(sources) for one in loaded.by_source[number]])
    clean, dropped = lint_examples(merged)
    splits = split_by_group(
        by_source(clean, len(sources)),
        sources,
        recipe.data.split,
        recipe.sft.limit,
        held_out=_held_out_groups(clean, _held_out_by_preferences(recipe)),
    )
    encoder = TurnEncoder(tokenizer, recipe.model.template)
    encoded = {
        split: list(tracked(encoder.encode_examples(examples), f"tokenising {split}", total=len(examples)))
        for split, examples in splits.pairs.items()
    }
    fitted = fit(encoder, encoded, recipe, "sft.max_length", recipe.sft.max_length)
    kept = {split: [one.example for one in examples] for split, examples in fitted.splits.items()}
    unread = Counter(bad_row=loaded.report.bad_rows, no_answer=loaded.report.rows_without_pair)
    return PreparedExamples(
        splits=fitted.splits,
        encoder=encoder,
        formats=", ".join(dict.fromkeys(name for names in loaded.formats for name in names)),
        dropped=Counter(dropped) + splits.dropped + fitted.dropped + unread,
        truncated=fitted.truncated,
        overlap=overlap(kept),
        near_duplicates=near_duplicates(kept),
        bad_rows=loaded.report.reasons,
    )


def _held_out_by_preferences(recipe: Recipe) -> dict[str, SplitName]:
    """Returns the prompts that the recipe's DPO stage will hold out, by `group_of`, and for which split."""
    try:
        splits = divide_pairs(recipe).splits.pairs
    except NotThereError as error:  # they may be written with the model that this stage makes
        note(f"{error.what}, so it is not known which questions the DPO stage will hold out. It will look itself.")
        return {}
    return {group_of(pair.prompt): side for side in ("validation", "test") for pair in splits[side]}


def _held_out_groups(examples: Iterable[Example], prompts: dict[str, SplitName]) -> dict[str, SplitName]:
    """Returns the examples' groups that have one of these prompts; test goes before validation."""
    found: dict[str, SplitName] = {}
    for one in examples:
        side = prompts.get(group_of(one.prompt))
        if side is not None and found.get(one.group) != "test":
            found[one.group] = side
    return found
