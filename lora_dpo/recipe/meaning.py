"""Which keys of a recipe decide what is trained, and which only how, where and how often it is looked at."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from lora_dpo.recipe.batch import token_budget
from lora_dpo.recipe.schema import Recipe

MAY_CHANGE = (
    "evaluation", "slurm", "hub", "sft",
    "train.strategy", "train.trees", "train.micro_batch_size", "train.gradient_checkpointing",
    "train.evals_per_epoch", "train.eval_steps", "train.save_steps",
    "train.keep_checkpoints", "train.max_hours", "train.on_nan", "train.hang_timeout", "train.logging_steps",
    "train.report_to", "train.trl.deepspeed", "run.name", "run.folder", "run.resume",
)  # fmt: skip
"""Sections and keys that leave the trained model the same, up to rounding."""


def meaning(recipe: Recipe) -> dict[str, Any]:
    """Returns the keys that decide which model comes out, as `section.key: value`."""
    flat = _flatten(recipe.model_dump(mode="json"))
    # Large questions are cut by it, and so the order of the pairs follows from it.
    flat["train.tokens_per_micro_batch"] = token_budget(recipe)
    kept = {key: value for key, value in flat.items() if not _may_change(key)}
    # As many trainings as folds are another thing than one.
    return kept if recipe.evaluation.folds is None else {**kept, "evaluation.folds": recipe.evaluation.folds}


def meaning_hash(recipe: Recipe) -> str:
    """Returns one SHA-256 over `meaning`."""
    return hashlib.sha256(json.dumps(meaning(recipe), sort_keys=True).encode()).hexdigest()


def changed_meaning(before: Recipe, now: Recipe) -> list[str]:
    """Returns one line for each key whose change means another model: `dpo.beta: 0.1 -> 0.2`."""
    old, new = meaning(before), meaning(now)
    return [
        f"{key}: {_show(old.get(key))} -> {_show(new.get(key))}"
        for key in dict.fromkeys([*old, *new])
        if old.get(key) != new.get(key)
    ]


def _may_change(key: str) -> bool:
    return any(key == free or key.startswith(f"{free}.") for free in MAY_CHANGE)


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _show(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
