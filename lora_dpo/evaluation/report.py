"""The report of a run: JSON for machines, Markdown for people, a table for the terminal."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from lora_dpo.console import err, out
from lora_dpo.files import write_json, write_text
from lora_dpo.recipe.run_folder import RunFolder
from lora_dpo.recipe.schema import Recipe

if TYPE_CHECKING:  # these import torch, which a report that is only shown again does not need
    from lora_dpo.evaluation.evaluate import Measured

SCHEMA_VERSION = 2
_SAMPLES_SHOWN = 2
_HEADINGS = ("", "before", "after", "change", "95 % interval", "p")
_METRICS = (
    ("multiple_choice", "mc0", "MC0", "share"),
    ("multiple_choice", "mc1", "MC1", "share"),
    ("multiple_choice", "mc2", "MC2", "share"),
    ("preference", "accuracy", "preference accuracy", "share"),
    ("preference", "normalised_accuracy", "accuracy per token", "share"),
    ("preference", "margin", "margin, nats", "signed"),
    ("generation.greedy", "tokens", "answer's tokens", "number"),
    ("generation.greedy", "repetition", "repetition", "share"),
    ("generation.greedy", "refusal", "refusals", "share"),
    ("generation.greedy", "ended", "ended by itself", "share"),
)
"""Where a comparison stands in report.json, in the table's order; its name there, and what kind of number it is."""
_FORMATS = {"share": "{:.1%}", "signed": "{:+.2f}", "number": "{:.1f}", "score": "{:+.3f}"}
_HOW_MEASURED = (
    "MC0: the best true answer is more probable than the best false one; MC1: than every false one; MC2: the true "
    "answers' part of the probability of all. Preference accuracy: of held-out pairs, the part in which the chosen "
    "answer is more probable, in sum or as a mean over its tokens. Margin: mean log p(chosen) - log p(rejected). Every "
    "question counts the same, however many pairs it has. Answers are greedy; repetition is the part of 4-grams of "
    "words that stood in the answer before. Intervals and p: paired bootstrap over questions."
)


_PUT = {"chat": "put as a chat", "harness": "put as the benchmark does"}


class Row(NamedTuple):
    """A line of the table, as text."""

    name: str
    before: str
    after: str
    change: str
    interval: str
    p: str


@dataclass(frozen=True, slots=True)
class Report:
    """What a run found.

    Args:
        recipe: The recipe.
        data: Counts and hashes of the splits, as `lora-dpo data --json` prints them.
        training: Optimizer steps, and seconds that they took.
        measured: What the evaluation found.
    """

    recipe: Recipe
    data: dict[str, Any]
    training: dict[str, float]
    measured: Measured

    def as_json(self) -> dict[str, Any]:
        """Returns the report with its stable keys."""
        found = {
            "multiple_choice": self.measured.multiple_choice,
            "preference": self.measured.preference,
            "generation": self.measured.generation,
            "cost": self.measured.cost,
            "samples": self.measured.samples,
        }
        return {
            "schema_version": SCHEMA_VERSION,
            "run": self.recipe.run.name,
            "model": self.recipe.model.name,
            "verdict": verdict(found),
            "training": self.training,
            "data": self.data,
            **found,
        }


def write_report(report: Report, run: RunFolder, pictures: Sequence[Path]) -> None:
    """Writes report.md, then report.json, whose presence says that the run is complete."""
    content = report.as_json()
    write_text(run.report_md, _markdown(report, content, [picture.relative_to(run.path) for picture in pictures]))
    write_json(run.report_json, content)


def show_finished(run: RunFolder) -> None:
    """Prints the report of a run that was asked for again, and how to repeat it."""
    err.print(f"{run.path} is finished; this is its report. To run it again, add --overwrite.\n", soft_wrap=True)
    print_report(json.loads(run.report_json.read_text(encoding="utf-8")), run)


def print_report(report: Mapping[str, Any], run: RunFolder) -> None:
    """Prints a report's table, two answers side by side, and where everything is.

    Args:
        report: The content of report.json.
        run: The run it belongs to.
    """
    out.print(Text(report["verdict"], style="bold"))
    if rows := list(_rows(report)):
        table = Table(caption=_counts(report))
        for heading in _HEADINGS:
            table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
        for row in rows:
            table.add_row(*row)
        out.print(table)
    for remark in _remarks(report):
        out.print(remark)
    for sample in report["samples"][:_SAMPLES_SHOWN]:
        out.print(Text(f"\n{sample['prompt']}", style="bold"))
        out.print(_side_by_side(sample))
    trained = run.adapter if run.adapter.is_dir() else run.model
    out.print()
    for label, path in (("pictures", run.plots / "training.png"), ("report", run.report_md), (trained.name, trained)):
        out.print(f"{label:<9} {path}", soft_wrap=True)


def verdict(report: Mapping[str, Any]) -> str:
    """Returns in a sentence whether the model became better, by the first metric that the data has.

    Args:
        report: `multiple_choice` and `preference`, as report.json has them.
    """
    for part, metric, name in (("multiple_choice", "mc1", "MC1"), ("preference", "accuracy", "preference accuracy")):
        if report[part] is not None:
            found = report[part][metric]
            low, high = found["ci95"]
            change = (
                f"{name} {found['before']:.1%} -> {found['after']:.1%} on {found['n']} held-out questions "
                f"({100 * found['difference']:+.1f} points, 95 % interval {100 * low:+.1f} to {100 * high:+.1f})."
            )
            if low > 0:
                return f"Better: {change}"
            return f"Worse: {change}" if high < 0 else f"No difference that can be told from chance: {change}"
    return "Nothing was held out, so there is nothing to say of it."


def _rows(report: Mapping[str, Any]) -> Iterator[Row]:
    for place, key, name, kind in _METRICS:
        part: Any = report
        for step in place.split("."):
            part = (part or {}).get(step)
        if part is not None and part.get(key) is not None:
            yield _row(name, part[key], kind)
    for judged in (report["generation"] or {"judges": []})["judges"]:
        yield _row(f"judge {Path(judged['judge']).name}", judged["score"], "score")


def _row(name: str, found: Mapping[str, Any], kind: str) -> Row:
    low, high = found["ci95"]
    levels = [_FORMATS[kind].format(found[when]) for when in ("before", "after")]
    if kind == "share":
        change, interval = f"{100 * found['difference']:+.1f} points", f"{100 * low:+.1f} to {100 * high:+.1f}"
    else:
        form = _FORMATS["signed" if kind == "number" else kind]
        change, interval = form.format(found["difference"]), f"{form.format(low)} to {form.format(high)}"
    return Row(name, *levels, change, interval, f"{found['p']:.4f}")


def _remarks(report: Mapping[str, Any]) -> Iterator[str]:
    """Yields what the table has no column for, a sentence each."""
    for judged in (report["generation"] or {"judges": []})["judges"]:
        agreement, wins = judged["agreement"], judged["wins"]
        yield (
            f"Judge {Path(judged['judge']).name} agrees with people on {agreement['agreement']:.1%} of "
            f"{agreement['n']:,} labelled {agreement['of']} (always saying the same: {agreement['majority']:.1%}); by "
            f"it {wins['win']} answers became better, {wins['loss']} worse, {wins['tie']} neither."
        )
    if cost := report["cost"]:
        before, after = cost["perplexity_before"], cost["perplexity_after"]
        change = f"{100 * (after / before - 1):+.1f} %"
        yield f"Perplexity of unrelated text ({cost['text']}): {before:.2f} -> {after:.2f} ({change})."
        if cost["kl_per_token"] is not None:
            yield f"Distance from the model before, on sampled answers: {cost['kl_per_token']:.3f} nats a token."


def _counts(report: Mapping[str, Any]) -> str:
    parts = []
    if choice := report["multiple_choice"]:
        parts.append(f"{choice['mc1']['n']} questions, {_PUT[choice['prompt_style']]}")
    if report["preference"]:
        parts.append(f"{report['preference']['n_pairs']} pairs of {report['preference']['n_groups']} questions")
    if report["generation"]:
        parts.append(f"{report['generation']['n']} answers")
    return "held out: " + "; ".join(parts)


def _side_by_side(sample: Mapping[str, str]) -> Table:
    grid = Table.grid(expand=True, padding=(0, 1))
    for _ in range(2):
        grid.add_column(ratio=1)
    grid.add_row(
        *(Panel(Text(sample[when] or "(nothing)"), title=when, title_align="left") for when in ("before", "after"))
    )
    return grid


def _markdown(report: Report, content: Mapping[str, Any], pictures: list[Path]) -> str:
    recipe = report.recipe
    lines = [f"# {recipe.run.name}", "", f"**{content['verdict']}**", "", _summary(report), ""]
    if rows := list(_rows(content)):
        lines += ["## Before and after", "", f"| {' | '.join(_HEADINGS)} |", "|---|--:|--:|--:|--:|--:|"]
        lines += [f"| {' | '.join(row)} |" for row in rows]
        lines += ["", f"{_counts(content).capitalize()}. {_HOW_MEASURED}", ""]
    lines += [f"- {remark}" for remark in _remarks(content)] + [""]
    if choice := content["multiple_choice"]:
        shown = choice["prompt_example"].replace("\n", "\n    ")
        lines += [f"Multiple choice ({choice['version']}), the first prompt:", "", f"    {shown}", ""]
    if content["samples"]:
        lines += ["## Answers to held-out questions", ""]
        for sample in content["samples"]:
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
    recipe, minutes = report.recipe, report.training["seconds"] / 60
    return (
        f"{recipe.model.name}, {recipe.adapter.method}, {' + '.join(recipe.dpo.loss)} with beta {recipe.dpo.beta:g}, "
        f"{report.training['steps']} steps of {recipe.train.global_batch_size} pairs in {minutes:.1f} minutes."
    )


def _one_line(text: str) -> str:
    return " ".join(text.split()) or "(nothing)"
