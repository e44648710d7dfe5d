"""How far a training is, from what it leaves in its run folder; nothing is asked of the training itself."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lora_dpo.recipe.run_folder import RunFolder
from lora_dpo.recipe.schema import Recipe
from lora_dpo.recipe.stages import UNITS

_TAIL_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Advance:
    """How far a training is.

    Attributes:
        step: Optimizer steps done, as far as they are logged.
        max_steps: Optimizer steps of the whole training; None where it is not known yet.
        loss: Of the last logged step.
        margin: Mean reward margin of the last logged step; None in the SFT stage.
        tokens_per_second: Of the last logged step, over all processes.
        seconds_left: Of the training, at the rate of the last logged step; None where that is not known.
        seconds_ago: When the last step was logged.
        saved_step: Step of the newest whole checkpoint, 0 for none.
        is_complete: Whether the report is there.
    """

    step: int
    max_steps: int | None
    loss: float | None
    margin: float | None
    tokens_per_second: float | None
    seconds_left: float | None
    seconds_ago: float | None
    saved_step: int
    is_complete: bool


def advance_of(run: RunFolder, recipe: Recipe) -> Advance | None:
    """Returns how far a stage's training is; None before it has logged or saved anything.

    Args:
        run: The stage's run.
        recipe: The stage's recipe.
    """
    last, saved = _last_line(run), _newest_checkpoint(run)
    if last is None and saved is None and not run.is_complete:
        return None
    last, saved = last or {}, saved or {}
    max_steps = last.get("max_steps") or saved.get("max_steps")
    step = last.get("step") or saved.get("step") or 0
    return Advance(
        step=step,
        max_steps=max_steps,
        loss=last.get("loss"),
        margin=last.get("rewards/margins"),
        tokens_per_second=last.get("tokens_per_second"),
        seconds_left=_seconds_left(last, recipe, step, max_steps),
        seconds_ago=_age(run),
        saved_step=saved.get("step") or 0,
        is_complete=run.is_complete,
    )


def _seconds_left(last: Mapping[str, Any], recipe: Recipe, step: int, max_steps: int | None) -> float | None:
    rate = last.get(f"{UNITS[recipe.run.stage]}_per_second")
    if not rate or max_steps is None:
        return None
    return max(0, max_steps - step) * recipe.train.global_batch_size / rate


def _age(run: RunFolder) -> float | None:
    try:
        return max(0.0, time.time() - run.metrics.stat().st_mtime)
    except OSError:
        return None


def _last_line(run: RunFolder) -> dict[str, Any] | None:
    """Returns the last line of a training step in metrics.jsonl, whose last line may be half written."""
    try:
        with run.metrics.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            lines = file.read().decode("utf-8", errors="replace").splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and entry.get("phase") == "train":
            return entry
    return None


def _newest_checkpoint(run: RunFolder) -> dict[str, Any] | None:
    """Returns what the newest whole checkpoint says of itself: the manifest is written last."""
    newest: dict[str, Any] | None = None
    for manifest in run.checkpoints.glob("step-*/manifest.json"):
        try:
            about = json.loads(manifest.read_text(encoding="utf-8"))["about"]
        except (OSError, ValueError, KeyError):
            continue
        if newest is None or about.get("step", 0) > newest.get("step", 0):
            newest = about
    return newest
