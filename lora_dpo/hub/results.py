"""A report's numbers in the Hub's own schema, for the metadata of a model card."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult
from huggingface_hub.utils import HFValidationError, validate_repo_id

from lora_dpo.recipe.schema import Recipe

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_METRICS = (
    ("multiple_choice", "mc0", "accuracy", "MC0"),
    ("multiple_choice", "mc1", "accuracy", "MC1"),
    ("multiple_choice", "mc2", "accuracy", "MC2"),
    ("preference", "accuracy", "accuracy", "preference accuracy"),
    ("preference", "normalised_accuracy", "accuracy", "preference accuracy per token"),
)


def data_sets(recipe: Recipe | None) -> list[str]:
    """Returns the Hub ids of the data sets that a recipe was trained on; files of one's own have none."""
    if recipe is None:
        return []
    paths = [source.path for section in (recipe.data, recipe.sft) for source in section.sources()]
    if recipe.run.stage == "sft":
        paths = [source.path for source in recipe.sft.sources()]
    return [path for path in dict.fromkeys(paths) if is_hub_id(path) and not Path(path).exists()]


def is_hub_id(name: str) -> bool:
    """Returns whether a name has the form of a Hub id, and not that of a file."""
    return bool(_HUB_ID.fullmatch(name)) and not name.startswith("bundled/") and not re.search(r"\.[a-z]+$", name)


def is_hub_name(name: str) -> bool:
    """Returns whether the Hub could have a model of this name: a Hub id, or an old one such as gpt2."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not name.endswith(".gguf")


def evaluation_results(report: Mapping[str, Any] | None, recipe: Recipe | None) -> list[EvalResult]:
    """Returns the numbers after training as the Hub's model-index has them.

    Args:
        report: The content of report.json; None where there is none.
        recipe: The recipe, for the data's name.
    """
    return [] if report is None else [*_held_out(report, recipe), *_harness(report)]


def _held_out(report: Mapping[str, Any], recipe: Recipe | None) -> Iterator[EvalResult]:
    known = data_sets(recipe)
    kind, name = (known[0], known[0]) if known else ("custom", _name_of(recipe))
    for part, key, metric, label in _METRICS:
        found = (report.get(part) or {}).get(key)
        if found is not None:
            yield EvalResult(
                task_type="text-generation",
                task_name="Text generation",
                dataset_type=kind,
                dataset_name=f"{name}, {found['n']} held-out questions",
                dataset_split="test",
                metric_type=metric,
                metric_name=f"{label} (before: {found['before']:.4f})",
                metric_value=round(found["after"], 4),
            )


def _harness(report: Mapping[str, Any]) -> Iterator[EvalResult]:
    harness = report.get("harness") or {"tasks": []}
    for found in harness["tasks"]:
        if found["after"] is not None:
            yield EvalResult(
                task_type="text-generation",
                task_name="Text generation",
                dataset_type=found["task"],
                dataset_name=f"{found['task']} ({harness['package']})",
                metric_type=found["metric"],
                metric_name=f"{found['metric']}, {found['filter']}",
                metric_value=found["after"],
            )


def _name_of(recipe: Recipe | None) -> str:
    sources: Sequence[Any] = (
        () if recipe is None else (recipe.data if recipe.run.stage == "dpo" else recipe.sft).sources()
    )
    return ", ".join(source.path.rstrip("/").rpartition("/")[2] for source in sources) or "held-out data"
