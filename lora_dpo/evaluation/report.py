"""The report of a run: JSON for machines, Markdown for people, a table for the terminal."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from lora_dpo.console import err, out
from lora_dpo.files import write_json, write_text
from lora_dpo.recipe.run_folder import RunFolder
from lora_dpo.recipe.schema import Recipe

if TYPE_CHECKING:  # both import torch, which a report that is only shown again does not need
    from lora_dpo.evaluation.preference import Preference
    from lora_dpo.evaluation.samples import Sample

SCHEMA_VERSION = 1
_SAMPLES_SHOWN = 2
_HOW_MEASURED = (
    "Accuracy: the part of held-out pairs in which the model gives the chosen answer the higher probability. "
    "Margin: mean log p(chosen) - log p(rejected), in nats. Every question counts the same, however many pairs it has."
)


@dataclass(frozen=True, slots=True)
class Report:
    """What a run found.

    Args:
        recipe: The recipe.
        data: Counts and hashes of the splits, as `lora-dpo data --json` prints them.
        steps: Optimizer steps.
        seconds: Time of the training.
        preference: Held-out preference before and after; None without a test split.
        samples: Answers side by side.
    """

    recipe: Recipe
    data: dict[str, Any]
    steps: int
    seconds: float
    preference: dict[str, Preference] | None
    samples: list[Sample]

    def as_json(self) -> dict[str, Any]:
        """Returns the report with its stable keys."""
        return {
            "schema_version": SCHEMA_VERSION,
            "run": self.recipe.run.name,
            "model": self.recipe.model.name,
            "training": {"steps": self.steps, "seconds": round(self.seconds, 1)},
            "data": self.data,
            "preference": self.preference,
            "samples": self.samples,
        }


def write_report(report: Report, run: RunFolder, pictures: Sequence[Path]) -> None:
    """Writes report.md, then report.json, whose presence says that the run is complete."""
    write_text(run.report_md, _markdown(report, [picture.relative_to(run.path) for picture in pictures]))
    write_json(run.report_json, report.as_json())


def show_finished(run: RunFolder) -> None:
    """Prints the report of a run that was asked for again, and how to repeat it."""
    err.print(f"{run.path} is finished; this is its report. To run it again, add --overwrite.\n", soft_wrap=True)
    print_report(json.loads(run.report_json.read_text(encoding="utf-8")), run)


def print_report(report: dict[str, Any], run: RunFolder) -> None:
    """Prints a report's table, two answers side by side, and where everything is.

    Args:
        report: The content of report.json.
        run: The run it belongs to.
    """
    if report["preference"]:
        out.print(Text(f"Preference on {_counts(report['preference'])}", style="bold"))
        out.print(_table(report["preference"]))
    for sample in report["samples"][:_SAMPLES_SHOWN]:
        out.print(Text(f"\n{sample['prompt']}", style="bold"))
        out.print(_side_by_side(sample))
    trained = run.adapter if run.adapter.is_dir() else run.model
    out.print()
    for label, path in (("pictures", run.plots / "training.png"), ("report", run.report_md), (trained.name, trained)):
        out.print(f"{label:<9} {path}", soft_wrap=True)


def _rows(preference: dict[str, Preference]) -> list[tuple[str, str, str, str]]:
    before, after = preference["before"], preference["after"]
    accuracy, margin = after["accuracy"] - before["accuracy"], after["margin"] - before["margin"]
    return [
        ("accuracy", f"{before['accuracy']:.1%}", f"{after['accuracy']:.1%}", f"{100 * accuracy:+.1f} points"),
        ("margin", f"{before['margin']:+.2f}", f"{after['margin']:+.2f}", f"{margin:+.2f} nats"),
    ]


def _counts(preference: dict[str, Preference]) -> str:
    counts = preference["after"]
    return f"{counts['n_pairs']} held-out pairs of {counts['n_groups']} questions"


def _table(preference: dict[str, Preference]) -> Table:
    table = Table()
    table.add_column("")
    for heading in ("before", "after", "change"):
        table.add_column(heading, justify="right")
    for row in _rows(preference):
        table.add_row(*row)
    return table


def _side_by_side(sample: Sample) -> Table:
    grid = Table.grid(expand=True, padding=(0, 1))
    for _ in range(2):
        grid.add_column(ratio=1)
    grid.add_row(
        *(Panel(Text(sample[when] or "(nothing)"), title=when, title_align="left") for when in ("before", "after"))
    )
    return grid


def _markdown(report: Report, pictures: list[Path]) -> str:
    recipe = report.recipe
    lines = [f"# {recipe.run.name}", "", _summary(report), ""]
    if report.preference:
        lines += [
            f"## Preference on {_counts(report.preference)}",
            "",
            "| | before | after | change |",
            "|---|--:|--:|--:|",
        ]
        lines += [f"| {' | '.join(row)} |" for row in _rows(report.preference)]
        lines += ["", _HOW_MEASURED, ""]
    if report.samples:
        lines += ["## Answers to held-out questions", ""]
        for sample in report.samples:
            lines += [f"**{_one_line(sample['prompt'])}**", ""]
            lines += [f"- {name}: {_one_line(sample[name])}" for name in ("before", "after", "chosen")]
            lines.append("")
    lines += ["## Training", ""]
    overview = next(picture for picture in pictures if picture.stem == "training")
    lines += [f"![loss, reward margin, accuracy and learning rate]({overview.as_posix()})", ""]
    splits = report.data["splits"]
    counts = ", ".join(f"{split} {n['pairs']} ({n['groups']} questions)" for split, n in splits.items())
    lines.append(f"Pairs: {counts}. See [recipe.yaml](recipe.yaml) and [provenance.json](provenance.json).")
    return "\n".join(lines) + "\n"


def _summary(report: Report) -> str:
    recipe = report.recipe
    return (
        f"{recipe.model.name}, {recipe.adapter.method}, {' + '.join(recipe.dpo.loss)} with beta {recipe.dpo.beta:g}, "
        f"{report.steps} steps of {recipe.train.global_batch_size} pairs in {report.seconds / 60:.1f} minutes."
    )


def _one_line(text: str) -> str:
    return " ".join(text.split()) or "(nothing)"
