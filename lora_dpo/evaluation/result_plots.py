"""Pictures of an evaluation: who was helped, by how much, and whether answers only became longer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lora_dpo.evaluation.figures import BLUE, GREY, RED, Panels, draw_panels
from lora_dpo.evaluation.outcomes import Outcome
from lora_dpo.evaluation.statistics import interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_CATEGORIES = 9
_SMALLEST_CATEGORY = 4
_BINS = 30
_NAMES = {"mc1": "MC1", "accuracy": "Preference accuracy"}


class _Level(NamedTuple):
    """A mean over questions with its interval."""

    value: float
    low: float
    high: float


def draw_results(outcomes: Sequence[Outcome], folder: Path) -> list[Path]:
    """Draws what there is data for: margins, accuracy by category, change of length; and all as evaluation.png.

    Args:
        outcomes: The held-out questions.
        folder: Where the pictures go.

    Returns:
        The files, the overview last; none where no question has values.
    """
    panels: dict[str, partial[None]] = {}
    if with_margin := [each for each in outcomes if "margin" in each.after]:
        panels["margins"] = partial(_draw_margins, outcomes=with_margin)
    if with_tokens := [each for each in outcomes if "tokens" in each.after]:
        panels["lengths"] = partial(_draw_lengths, outcomes=with_tokens)
    metric = "mc1" if any("mc1" in each.after for each in outcomes) else "accuracy"
    known = [each for each in outcomes if metric in each.after]
    if len({each.category for each in known}) > 1:
        panels["categories"] = partial(_draw_categories, outcomes=known, metric=metric)
    return draw_panels(panels, folder, "evaluation", _layout(panels)) if panels else []


def _layout(panels: Panels) -> list[list[str]]:
    """Returns the panels' places: the categories, which need height, stand beside the others."""
    others = [name for name in panels if name != "categories"]
    if "categories" not in panels:
        return [others]
    return [["categories", name] for name in others] or [["categories"]]


def _draw_margins(axes: Axes, outcomes: Sequence[Outcome]) -> None:
    before, after = ([getattr(each, when)["margin"] for each in outcomes] for when in ("before", "after"))
    edges = np.histogram_bin_edges([*before, *after], bins=_BINS)
    axes.hist(before, edges, color=GREY, alpha=0.6, label="before")
    axes.hist(after, edges, color=BLUE, alpha=0.6, label="after")
    axes.axvline(0.0, color="black", linewidth=0.8)
    axes.set_title("Margin: log p(chosen) - log p(rejected)", loc="left", fontsize=11)
    axes.set_xlabel("nats, mean of a question's pairs")
    axes.set_ylabel("held-out questions")
    axes.legend(loc="best")


def _draw_lengths(axes: Axes, outcomes: Sequence[Outcome]) -> None:
    change = np.array([each.gain("tokens") for each in outcomes])
    reach = max(1.0, np.abs(change).max())
    axes.hist(change, np.linspace(-reach, reach, _BINS), color=BLUE, alpha=0.6)
    axes.axvline(0.0, color="black", linewidth=0.8)
    axes.axvline(change.mean(), color=RED, linewidth=1.6, label=f"mean {change.mean():+.1f}")
    axes.set_title("Change of the greedy answer's length", loc="left", fontsize=11)
    axes.set_xlabel("tokens, after - before")
    axes.set_ylabel("held-out questions")
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.legend(loc="best")


def _draw_categories(axes: Axes, outcomes: Sequence[Outcome], metric: str) -> None:
    groups = _by_category(outcomes)
    places = np.arange(len(groups))[::-1]
    for when, color, shift in (("before", GREY, 0.16), ("after", BLUE, -0.16)):
        levels = [_level([getattr(each, when)[metric] for each in part]) for part in groups.values()]
        axes.errorbar(
            [level.value for level in levels],
            places + shift,
            xerr=[
                [level.value - level.low for level in levels],
                [level.high - level.value for level in levels],
            ],
            fmt="o",
            color=color,
            markersize=5,
            linewidth=1.4,
            label=when,
        )
    axes.set_yticks(places, [f"{name} ({len(part)})" for name, part in groups.items()])
    axes.set_xlim(-0.02, 1.02)
    axes.xaxis.set_major_formatter("{x:.0%}")
    axes.set_title(f"{_NAMES[metric]} by category", loc="left", fontsize=11)
    axes.set_xlabel("mean and 95 % interval")
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 0.985), ncols=2)


def _by_category(outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    """Returns the questions of the largest categories, the largest first, those of all others together, and all."""
    groups: dict[str, list[Outcome]] = defaultdict(list)
    for each in outcomes:
        groups[each.category or "(none)"].append(each)
    ranked = sorted(groups, key=lambda name: (-len(groups[name]), name))
    kept = [name for name in ranked[:_CATEGORIES] if len(groups[name]) >= _SMALLEST_CATEGORY]
    shown = {name: groups[name] for name in kept}
    if others := [each for name in ranked if name not in kept for each in groups[name]]:
        shown[f"{len(ranked) - len(kept)} others"] = others
    return {**shown, "all": list(outcomes)}


def _level(values: Sequence[float]) -> _Level:
    return _Level(float(np.mean(values)), *interval(values))
