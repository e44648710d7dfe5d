"""A report's numbers in words: the verdict, the table's rows, and what has no row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

HEADINGS = ("", "before", "after", "change", "95 % interval", "p")
_METRICS = (
    ("multiple_choice", "mc0", "MC0", "share"),
    ("multiple_choice", "mc1", "MC1", "share"),
    ("multiple_choice", "mc2", "MC2", "share"),
    ("preference", "accuracy", "preference accuracy", "share"),
    ("preference", "normalised_accuracy", "accuracy per token", "share"),
    ("preference", "margin", "margin, nats", "signed"),
    ("sft", "loss", "loss, nats a token", "nats"),
    ("generation.greedy", "tokens", "answer's tokens", "number"),
    ("generation.greedy", "repetition", "repetition", "share"),
    ("generation.greedy", "refusal", "refusals", "share"),
    ("generation.greedy", "ended", "ended by itself", "share"),
)
"""Where a comparison stands in report.json, in the table's order; its name there, and what kind of number it is."""
_FORMATS = {"share": "{:.1%}", "signed": "{:+.2f}", "number": "{:.1f}", "score": "{:+.3f}", "nats": "{:.3f}"}
HARNESS_HEADINGS = ("task", "metric", "before", "after", "change", "n")
_PUT = {"chat": "put as a chat", "harness": "put as the benchmark does"}


class Row(NamedTuple):
    """A line of the table, as text."""

    name: str
    before: str
    after: str
    change: str
    interval: str
    p: str


def verdict(report: Mapping[str, Any]) -> str:
    """Returns in a sentence whether the model became better, by the first metric that the data has.

    Args:
        report: `multiple_choice`, `preference` and, if there are any, `sft` and `harness`, as report.json has them.
    """
    if report.get("sft") is not None:
        return _verdict_of_sft(report["sft"]["loss"])
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
    if report.get("harness"):
        return "Nothing was held out; lm-evaluation-harness found the numbers below."
    return "Nothing was held out, so there is nothing to say of it."


def _verdict_of_sft(loss: Mapping[str, Any]) -> str:
    low, high = loss["ci95"]
    change = (
        f"held-out loss {loss['before']:.3f} -> {loss['after']:.3f} nats a token on {loss['n']} held-out questions "
        f"({loss['difference']:+.3f}, 95 % interval {low:+.3f} to {high:+.3f})."
    )
    if high < 0:
        return f"Better: {change}"
    return f"Worse: {change}" if low > 0 else f"No difference that can be told from chance: {change}"


def rows(report: Mapping[str, Any]) -> list[Row]:
    """Returns the table's rows, one for each comparison that the report has."""
    return list(_rows(report))


def _rows(report: Mapping[str, Any]) -> Iterator[Row]:
    for name, found, kind in comparisons(report):
        yield row(name, found, kind)


def comparisons(report: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any], str]]:
    """Yields the name of each comparison that a report has, its numbers, and what kind of number they are."""
    for place, key, name, kind in _METRICS:
        part: Any = report
        for step in place.split("."):
            part = (part or {}).get(step)
        if part is not None and part.get(key) is not None:
            yield name, part[key], kind
    for judged in _judges(report):
        yield f"judge {Path(judged['judge']).name}", judged["score"], "score"


def row(name: str, found: Mapping[str, Any], kind: str) -> Row:
    """Returns a comparison as text."""
    low, high = found["ci95"]
    levels = [_FORMATS[kind].format(found[when]) for when in ("before", "after")]
    interval = f"{_change(low, kind)} to {_change(high, kind)}"
    return Row(name, *levels, _change(found["difference"], kind), interval, f"{found['p']:.4f}")


def _change(value: float, kind: str) -> str:
    """Returns a difference with its sign, of shares in percentage points."""
    if kind == "share":
        return f"{100 * value:+.1f}"
    return _FORMATS[{"number": "signed", "nats": "score"}.get(kind, kind)].format(value)


def fold_rows(report: Mapping[str, Any]) -> list[list[str]]:
    """Returns a heading with the folds of a cross-validation, and a row of changes for each metric; or nothing."""
    folds = report.get("folds", [])
    if not folds:
        return []
    found = [
        ["change in", *(fold["run"] for fold in folds)],
        ["questions", *(str(fold["questions"]) for fold in folds)],
    ]
    for _, key, name, kind in _METRICS:
        if key in folds[0]["difference"]:
            found.append([name, *(_change(fold["difference"][key], kind) for fold in folds)])
    found.append(["perplexity", *(f"{100 * fold['perplexity_change']:+.1f} %" for fold in folds)])
    return found


def harness_rows(report: Mapping[str, Any]) -> list[list[str]]:
    """Returns a row for each number that lm-evaluation-harness found, with its standard errors."""
    return [
        [
            found["task"],
            found["metric"] if found["filter"] == "none" else f"{found['metric']}, {found['filter']}",
            *(_with_error(found[when], found[f"stderr_{when}"]) for when in ("before", "after")),
            "" if None in (found["before"], found["after"]) else f"{found['after'] - found['before']:+.4f}",
            str(found["n"]),
        ]
        for found in (report.get("harness") or {"tasks": []})["tasks"]
    ]


def harness_remark(report: Mapping[str, Any]) -> str:
    """Returns how these numbers came about."""
    harness = report["harness"]
    cut = "" if harness["limit"] is None else f", the first {harness['limit']} documents of each task"
    return f"{harness['package']}, no chat template{cut}; ± is its standard error"


def _with_error(value: float | None, error: float | None) -> str:
    return " ± ".join(f"{number:.4f}" for number in (value, error) if number is not None)


def remarks(report: Mapping[str, Any]) -> Iterator[str]:
    """Yields what the table has no column for, a sentence each."""
    for judged in _judges(report):
        agreement, wins = judged["agreement"], judged["wins"]
        yield (
            f"Judge {Path(judged['judge']).name} agrees with people on {agreement['agreement']:.1%} of "
            f"{agreement['n']:,} labelled {agreement['of']} (always saying the same: {agreement['majority']:.1%}); by "
            f"it {wins['win']} answers became better, {wins['loss']} worse, {wins['tie']} neither."
        )
    if sft := report.get("sft"):
        yield f"Perplexity of held-out answers: {sft['perplexity_before']:.2f} -> {sft['perplexity_after']:.2f}."
    if cost := report["cost"]:
        before, after = cost["perplexity_before"], cost["perplexity_after"]
        change = f"{100 * (after / before - 1):+.1f} %"
        yield f"Perplexity of unrelated text ({cost['text']}): {before:.2f} -> {after:.2f} ({change})."
        if cost["kl_per_token"] is not None:
            yield f"Distance from the model before, on sampled answers: {cost['kl_per_token']:.3f} nats a token."


def counts(report: Mapping[str, Any]) -> str:
    """Returns what the numbers are means over."""
    parts = []
    if choice := report["multiple_choice"]:
        parts.append(f"{choice['mc1']['n']} questions, {_PUT[choice['prompt_style']]}")
    if report["preference"]:
        parts.append(f"{report['preference']['n_pairs']} pairs of {report['preference']['n_groups']} questions")
    if sft := report.get("sft"):
        parts.append(f"{sft['n_examples']} examples of {sft['n_groups']} questions")
    if report["generation"]:
        parts.append(f"{report['generation']['n']} answers")
    return "held out: " + "; ".join(parts) + "; changes of shares in points"


def _judges(report: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return report["generation"]["judges"] if report["generation"] else []
