"""Pictures of a training, drawn from its metrics.jsonl alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_dpo.errors import UserError
from lora_dpo.evaluation.figures import BLUE, GREY, RED, draw_panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Entries = list[dict[str, Any]]


def read_metrics(file: Path) -> Entries:
    """Returns the logged steps of a run.

    Raises:
        UserError: There are none.
    """
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    entries: Entries = []
    for line in lines:
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            break  # the last line of a run that was killed while writing it
    if not entries:
        raise UserError(f"{file} has no logged steps, so there is nothing to draw.")
    return entries


def draw_training(entries: Entries, folder: Path) -> list[Path]:
    """Draws loss, reward margin, accuracy and learning rate, one PNG each, and all four as training.png.

    Args:
        entries: What `read_metrics` returned.
        folder: Where the pictures go.

    Returns:
        The files.
    """
    panels = {name: partial(draw, entries=entries) for name, draw in PANELS.items()}
    return draw_panels(panels, folder, "training", _LAYOUT)


def _draw_loss(axes: Axes, entries: Entries) -> None:
    _draw_metric(axes, entries, "loss", "Loss")


def _draw_margin(axes: Axes, entries: Entries) -> None:
    axes.axhline(0.0, color=GREY, linewidth=0.8)
    _draw_metric(axes, entries, "rewards/margins", "Reward margin (chosen - rejected)")


def _draw_accuracy(axes: Axes, entries: Entries) -> None:
    axes.axhline(0.5, color=GREY, linewidth=0.8, linestyle=":")
    _draw_metric(axes, entries, "rewards/accuracies", "Reward accuracy")
    axes.set_ylim(-0.02, 1.02)


def _draw_learning_rate(axes: Axes, entries: Entries) -> None:
    _draw_metric(axes, entries, "learning_rate", "Learning rate")
    axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    axes.set_ylim(bottom=0.0)


PANELS: dict[str, Callable[[Any, Entries], None]] = {
    "loss": _draw_loss,
    "reward_margin": _draw_margin,
    "accuracy": _draw_accuracy,
    "learning_rate": _draw_learning_rate,
}
_LAYOUT = (("loss", "reward_margin"), ("accuracy", "learning_rate"))


def _draw_metric(axes: Axes, entries: Entries, key: str, title: str) -> None:
    train, held_out = (
        [(entry["step"], entry[key]) for entry in entries if entry["phase"] == phase and entry.get(key) is not None]
        for phase in ("train", "eval")
    )
    if train:
        steps, values = zip(*train, strict=True)
        smooth = _smoothed(values) if key != "learning_rate" else values
        if smooth != values:
            axes.plot(steps, values, color=BLUE, alpha=0.25, linewidth=1.0)
        axes.plot(steps, smooth, color=BLUE, linewidth=1.8, label="train" if smooth == values else "train (smoothed)")
    if held_out:
        steps, values = zip(*held_out, strict=True)
        axes.plot(steps, values, color=RED, linewidth=1.8, marker="o", markersize=4, label="validation")
        axes.legend(loc="best")
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlabel("optimizer step")
    axes.xaxis.get_major_locator().set_params(integer=True)


def _smoothed(values: tuple[float, ...], keep: float = 0.85) -> tuple[float, ...]:
    """Returns the exponential moving average, corrected for its start; short series are left as they are."""
    if len(values) < 12:
        return values
    average, smooth = 0.0, []
    for index, value in enumerate(values, start=1):
        average = keep * average + (1 - keep) * value
        smooth.append(average / (1 - keep**index))
    return tuple(smooth)
