"""What a reader of a report must know before the numbers are believed, a sentence each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lora_dpo.recipe.schema import Recipe

_FEW_QUESTIONS = 100
_FORGOTTEN = 0.05
_OTHER_LENGTH = 0.25


def caveats_of_data(recipe: Recipe, data: Mapping[str, Any]) -> Iterator[str]:
    """Yields what the way the data was divided means for the numbers.

    Args:
        recipe: The recipe.
        data: Counts of the splits, as `lora-dpo data --json` prints them.
    """
    section = recipe.sft if recipe.run.stage == "sft" else recipe.data
    names = [source.path for source in section.sources() if source.use == "auto"]
    trained, held_out = (data["splits"][split]["groups"] for split in ("train", "test"))
    if names and held_out:
        yield (
            f"It was trained on {trained} other questions of the same data ({', '.join(names)}). No held-out question "
            "is among them, but they are of the same kind and by the same authors: on other questions expect less."
        )
    if near := data.get("near_duplicates"):
        yield (
            f"{near} {'questions are' if near > 1 else 'question is'} nearly the same text as one of another split; "
            "`lora-dpo data RECIPE` shows them."
        )
    if recipe.run.stage == "dpo" and recipe.dpo.reference_model == "base" and recipe.adapter.init_from is not None:
        yield (
            f"'Before' is the reference, the base model. What {recipe.adapter.init_from}, which the training began "
            "with, had changed is part of the difference."
        )


def caveats_of_result(found: Mapping[str, Any]) -> Iterator[str]:
    """Yields what the numbers themselves warn of.

    Args:
        found: `multiple_choice`, `preference`, `sft`, `generation` and `cost`, as report.json has them.
    """
    first = (found["multiple_choice"] or {}).get("mc1") or (found["preference"] or {}).get("accuracy")
    first = first or (found.get("sft") or {}).get("loss")
    if first is not None and first["n"] < _FEW_QUESTIONS:
        yield f"{first['n']} held-out questions are few: mind the intervals, not the differences."
    if cost := found["cost"]:
        before, after = cost["perplexity_before"], cost["perplexity_after"]
        if after > (1 + _FORGOTTEN) * before:
            yield (
                f"It predicts unrelated text worse than before: perplexity {100 * (after / before - 1):+.1f} %. A "
                "lower learning rate or fewer epochs forget less."
            )
    if generation := found["generation"]:
        tokens = generation["greedy"]["tokens"]
        part = tokens["difference"] / max(tokens["before"], 1)
        if part > _OTHER_LENGTH and tokens["ci95"][0] > 0:
            yield "Answers became much longer; judges and people often take longer for better."
        if part < -_OTHER_LENGTH and tokens["ci95"][1] < 0:
            yield "Answers became much shorter; read some, whether they still say as much."
