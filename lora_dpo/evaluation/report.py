"""The report of a run: JSON for machines, a page for people, a table for the terminal."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from lora_dpo.console import err, out
from lora_dpo.evaluation import tables
from lora_dpo.evaluation.caveats import caveats_of_result
from lora_dpo.evaluation.outcomes import examples
from lora_dpo.evaluation.page import markdown
from lora_dpo.files import write_json, write_text
from lora_dpo.recipe.run_folder import RunFolder
from lora_dpo.recipe.schema import Recipe

if TYPE_CHECKING:  # these import torch, which a report that is only shown again does not need
    from lora_dpo.evaluation.evaluate import Measured
    from lora_dpo.evaluation.harness import Harness

SCHEMA_VERSION = 2
_SAMPLES_SHOWN = 2


@dataclass(frozen=True, slots=True)
class Report:
    """What a run found.

    Args:
        recipe: The recipe.
        data: Counts and hashes of the splits, as `lora-dpo data --json` prints them.
        training: Optimizer steps, and seconds that they took; None for what was trained elsewhere.
        measured: What the evaluation found.
        caveats: What must be known before the numbers are believed, besides what they themselves warn of.
        subject: Which weights were measured on which data; None for a run on its own, which says it in its folder.
        harness: What lm-evaluation-harness found, if it was asked.
    """

    recipe: Recipe
    data: dict[str, Any]
    training: dict[str, float] | None
    measured: Measured
    caveats: list[str] = field(default_factory=list)
    subject: dict[str, Any] | None = None
    harness: Harness | None = None

    def as_json(self) -> dict[str, Any]:
        """Returns the report with its stable keys."""
        found = {
            "multiple_choice": self.measured.multiple_choice,
            "preference": self.measured.preference,
            "generation": self.measured.generation,
            "cost": self.measured.cost,
            "harness": self.harness,
        }
        return {
            "schema_version": SCHEMA_VERSION,
            "run": self.recipe.run.name,
            "model": self.recipe.model.name,
            "subject": self.subject,
            "verdict": tables.verdict(found),
            "training": self.training,
            "data": self.data,
            **found,
            "examples": examples(self.measured.outcomes),
            "samples": self.measured.samples,
            "caveats": [*self.caveats, *caveats_of_result(found)],
        }

    def summary(self) -> str:
        """Returns in a sentence what was trained, and how long, as far as that is known."""
        recipe = self.recipe
        if self.training is None:
            return f"{self.subject['place'] or self.subject['name']}, compared with {recipe.model.name}."
        minutes = self.training["seconds"] / 60
        return (
            f"{recipe.model.name}, {recipe.adapter.method}, {' + '.join(recipe.dpo.loss)} with beta "
            f"{recipe.dpo.beta:g}, {self.training['steps']} steps of {recipe.train.global_batch_size} pairs in "
            f"{minutes:.1f} minutes."
        )

    def links(self) -> str:
        """Returns how much data there was, and where more is to be found."""
        splits = self.data.get("splits", {}).items()
        counts = ", ".join(f"{split} {n['pairs']} ({n['groups']} questions)" for split, n in splits if n["pairs"])
        if self.subject is None:
            return f"Pairs: {counts}. See [recipe.yaml](recipe.yaml) and [provenance.json](provenance.json)."
        pairs = f"Pairs of {self.subject['data']}: {counts}. " if self.subject["data"] else ""
        return f"{pairs}[report.json](report.json) has the hashes of the weights, under `subject`."


def write_report(report: Report, run: RunFolder, pictures: Sequence[Path]) -> None:
    """Writes report.md, then report.json, whose presence says that the run is complete."""
    content = report.as_json()
    relative = [picture.relative_to(run.path) for picture in pictures]
    write_text(run.report_md, markdown(content, report.summary(), relative, report.links()))
    write_json(run.report_json, content)


def show_finished(run: RunFolder) -> None:
    """Prints the report of a run that was asked for again, and how to repeat it."""
    err.print(f"{run.path} is finished; this is its report. To run it again, add --overwrite.\n", soft_wrap=True)
    report = json.loads(run.report_json.read_text(encoding="utf-8"))
    if report["schema_version"] == SCHEMA_VERSION:
        print_report(report, run)
    else:
        err.print(f"It is an older version's; `lora-dpo eval {run.path}` writes it anew.", soft_wrap=True)


def print_report(report: Mapping[str, Any], run: RunFolder) -> None:
    """Prints a report's table, two answers side by side, and where everything is.

    Args:
        report: The content of report.json.
        run: The run it belongs to.
    """
    out.print(Text(report["verdict"], style="bold"))
    if rows := tables.rows(report):
        out.print(_table(tables.HEADINGS, rows, caption=tables.counts(report)))
    if folds := tables.fold_rows(report):
        out.print(_table(folds[0], folds[1:]))
    if tasks := tables.harness_rows(report):
        out.print(_table(tables.HARNESS_HEADINGS, tasks, caption=tables.harness_remark(report)))
    for remark in (*tables.remarks(report), *report["caveats"]):
        out.print(Text(f"- {remark}"))
    for sample in report["samples"][:_SAMPLES_SHOWN]:
        out.print(Text(f"\n{sample['prompt']}", style="bold"))
        out.print(_side_by_side(sample))
    places = {"pictures": run.plots, "report": run.report_md, "adapter": run.adapter, "model": run.model}
    out.print()
    for label, path in places.items():
        if path.exists():
            out.print(f"{label:<9} {path}", soft_wrap=True)


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]], caption: str | None = None) -> Table:
    table = Table(caption=caption)
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def _side_by_side(sample: Mapping[str, str]) -> Table:
    grid = Table.grid(expand=True, padding=(0, 1))
    for _ in range(2):
        grid.add_column(ratio=1)
    grid.add_row(
        *(Panel(Text(sample[when] or "(nothing)"), title=when, title_align="left") for when in ("before", "after"))
    )
    return grid
