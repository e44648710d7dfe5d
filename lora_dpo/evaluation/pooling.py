"""One report over the folds of a cross-validation: every question was held out once."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lora_dpo.evaluation import tables
from lora_dpo.evaluation.caveats import caveats_of_data, caveats_of_result
from lora_dpo.evaluation.outcomes import Outcome, examples, read_outcomes, write_outcomes
from lora_dpo.evaluation.page import markdown
from lora_dpo.evaluation.report import SCHEMA_VERSION, print_report
from lora_dpo.evaluation.result_plots import draw_results
from lora_dpo.evaluation.statistics import Comparison, compare
from lora_dpo.files import write_json, write_text
from lora_dpo.recipe.folds import fold_runs
from lora_dpo.recipe.run_folder import RunFolder
from lora_dpo.recipe.schema import Recipe

_CHOICE, _PREFERENCE = ("mc0", "mc1", "mc2"), ("accuracy", "normalised_accuracy", "margin")
_STYLE = ("tokens", "words", "repetition", "refusal", "ended")


def pool_folds(recipe: Recipe) -> dict[str, Any]:
    """Writes the report over a recipe's folds beside them, all of which must be finished.

    Args:
        recipe: A recipe with `evaluation.folds`.

    Returns:
        The report, as JSON.
    """
    run, folds = RunFolder.of(recipe), fold_runs(recipe)
    reports = [json.loads(fold.report_json.read_text(encoding="utf-8")) for fold in folds]
    outcomes = [read_outcomes(fold.outcomes) for fold in folds]
    content = _pooled(recipe, reports, outcomes)
    together = [each for part in outcomes for each in part]
    write_outcomes(run.outcomes, together)
    pictures = [picture.relative_to(run.path) for picture in draw_results(together, run.plots)]
    write_text(run.report_md, markdown(content, _summary(recipe, content), pictures, _links(folds)))
    write_json(run.report_json, content)
    print_report(content, run)
    return content


def _pooled(recipe: Recipe, reports: Sequence[dict[str, Any]], outcomes: Sequence[Sequence[Outcome]]) -> dict[str, Any]:
    together = [each for part in outcomes for each in part]
    seed, first = recipe.run.seed, reports[0]
    found = {
        "multiple_choice": _part(first["multiple_choice"], together, _CHOICE, seed),
        "preference": _part(first["preference"], together, _PREFERENCE, seed),
        "generation": _generation(first["generation"], together, seed),
        "cost": _cost([report["cost"] for report in reports]),
    }
    if found["preference"] is not None:
        for count in ("n_pairs", "n_groups"):
            found["preference"][count] = sum(report["preference"][count] for report in reports)
    data = {**first["data"], "splits": {"test": _counts(reports)}}
    return {
        "schema_version": SCHEMA_VERSION,
        "run": recipe.run.name,
        "model": recipe.model.name,
        "subject": None,
        "verdict": tables.verdict(found),
        "training": {key: sum(report["training"][key] for report in reports) for key in ("steps", "seconds")},
        "data": data,
        **found,
        "harness": None,
        "folds": [_fold(report) for report in reports],
        "examples": examples(together),
        "samples": [sample for report in reports for sample in report["samples"][:1]],
        "caveats": [*_caveats(recipe, reports), *caveats_of_result(found)],
    }


def _part(
    known: dict[str, Any] | None, outcomes: Sequence[Outcome], metrics: Sequence[str], seed: int
) -> dict[str, Any] | None:
    """Returns a part of a report with its comparisons made anew over all questions.

    What cannot be pooled from questions, as calibration, is left out.
    """
    if known is None:
        return None
    kept = {key: value for key, value in known.items() if isinstance(value, str)}
    return {**kept, **{metric: _compared(outcomes, metric, seed) for metric in metrics}}


def _compared(outcomes: Sequence[Outcome], metric: str, seed: int) -> Comparison | None:
    known = [each for each in outcomes if metric in each.after]
    if not known:
        return None
    return compare([each.before[metric] for each in known], [each.after[metric] for each in known], seed=seed)


def _generation(known: dict[str, Any] | None, outcomes: Sequence[Outcome], seed: int) -> dict[str, Any] | None:
    if known is None:
        return None
    answered = sum("tokens" in each.after for each in outcomes)
    greedy = {metric: _compared(outcomes, metric, seed) for metric in _STYLE}
    return {"n": answered, "max_new_tokens": known["max_new_tokens"], "greedy": greedy, "judges": []}


def _cost(costs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns means over the folds: geometric ones of perplexities, since these are exponentials of means."""
    moved = [cost["kl_per_token"] for cost in costs if cost["kl_per_token"] is not None]
    logs = {when: np.mean([np.log(cost[f"perplexity_{when}"]) for cost in costs]) for when in ("before", "after")}
    return {
        "kl_per_token": float(np.mean(moved)) if moved else None,
        "perplexity_before": float(np.exp(logs["before"])),
        "perplexity_after": float(np.exp(logs["after"])),
        "text": costs[0]["text"],
    }


def _counts(reports: Sequence[dict[str, Any]]) -> dict[str, int]:
    return {key: sum(report["data"]["splits"]["test"][key] for report in reports) for key in ("pairs", "groups")}


def _fold(report: dict[str, Any]) -> dict[str, Any]:
    """Returns the line of a fold: its differences, by the metric's name."""
    differences = {
        metric: part[metric]["difference"]
        for name, metrics in (("multiple_choice", _CHOICE), ("preference", _PREFERENCE))
        if (part := report[name]) is not None
        for metric in metrics
        if part[metric] is not None
    }
    cost = report["cost"]
    return {
        "run": report["run"],
        "questions": report["data"]["splits"]["test"]["groups"],
        "difference": differences,
        "perplexity_change": cost["perplexity_after"] / cost["perplexity_before"] - 1,
    }


def _caveats(recipe: Recipe, reports: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield (
        f"Intervals are over questions. The {len(reports)} trainings differ by chance too, which is not in them: see "
        "the table of the folds."
    )
    yield from caveats_of_data(recipe, reports[0]["data"])


def _summary(recipe: Recipe, content: dict[str, Any]) -> str:
    return (
        f"{recipe.model.name}, {recipe.adapter.method}, {' + '.join(recipe.dpo.loss)} with beta {recipe.dpo.beta:g}: "
        f"{recipe.evaluation.folds} trainings, each with a fresh adapter and another part of the questions held out, "
        f"{content['training']['steps']} steps of {recipe.train.global_batch_size} pairs in "
        f"{content['training']['seconds'] / 60:.1f} minutes in all."
    )


def _links(folds: Sequence[RunFolder]) -> str:
    pages = ", ".join(f"[{fold.path.name}]({Path(fold.path.name, fold.report_md.name).as_posix()})" for fold in folds)
    return f"Each fold is a run of its own: {pages}."
