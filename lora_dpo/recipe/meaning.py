"""Which keys of a recipe decide what is trained, and which only how, where and how often it is looked at."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from lora_dpo.recipe.batch import token_budget
from lora_dpo.recipe.schema import Recipe, Stage

_OUTSIDE_OF_A_RUN = ("merge", "slurm", "hub")
MAY_CHANGE = (
    *_OUTSIDE_OF_A_RUN, "evaluation",
    "train.strategy", "train.trees", "train.micro_batch_size", "train.gradient_checkpointing",
    "train.evals_per_epoch", "train.eval_steps", "train.save_steps",
    "train.keep_checkpoints", "train.max_hours", "train.on_nan", "train.hang_timeout", "train.logging_steps",
    "train.report_to", "train.trl.deepspeed", "sft.trl.deepspeed", "run.name", "run.folder", "run.resume",
)  # fmt: skip
"""Sections and keys that leave the trained model the same, up to rounding."""
_OF_OTHER_STAGES: dict[Stage, tuple[str, ...]] = {
    "dpo": ("sft",),
    # The data is known by its hash, on which the preferences have an effect: their test questions are held out.
    "sft": ("dpo", "data.path", "data.columns", "data.pairs", "data.min_margin", "data.limit"),
}


def meaning(recipe: Recipe) -> dict[str, Any]:
    """Returns the keys that decide which model comes out, as `section.key: value`."""
    flat = _flatten(recipe.model_dump(mode="json"))
    # Large questions are cut by it, and so the order of the pairs follows from it.
    flat["train.tokens_per_micro_batch"] = token_budget(recipe)
    free = (*MAY_CHANGE, *_OF_OTHER_STAGES[recipe.run.stage])
    kept = {key: value for key, value in flat.items() if not _is_below(key, free)}
    # As many trainings as folds are another thing than one.
    return kept if recipe.evaluation.folds is None else {**kept, "evaluation.folds": recipe.evaluation.folds}


def meaning_hash(recipe: Recipe) -> str:
    """Returns one SHA-256 over `meaning`."""
    return hashlib.sha256(json.dumps(meaning(recipe), sort_keys=True).encode()).hexdigest()


def same_run(one: Recipe, other: Recipe) -> bool:
    """Returns whether two recipes ask for the same run; what is done with its results does not count."""
    sections = set(_OUTSIDE_OF_A_RUN)
    return one.model_dump(exclude=sections) == other.model_dump(exclude=sections)


def changed_meaning(before: Recipe, now: Recipe) -> list[str]:
    """Returns one line for each key whose change means another model: `dpo.beta: 0.1 -> 0.2`."""
    old, new = meaning(before), meaning(now)
    return [
        f"{key}: {_show(old.get(key))} -> {_show(new.get(key))}"
        for key in dict.fromkeys([*old, *new])
        if old.get(key) != new.get(key)
    ]


def _is_below(key: str, places: Sequence[str]) -> bool:
    return any(key == place or key.startswith(f"{place}.") for place in places)


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _show(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
