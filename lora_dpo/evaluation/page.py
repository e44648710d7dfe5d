"""The report as a page of Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_dpo.evaluation import tables

_HOW_MEASURED = (
    "MC0: the best true answer is more probable than the best false one; MC1: than every false one; MC2: the true "
    "answers' part of the probability of all. Preference accuracy: of held-out pairs, the part in which the chosen "
    "answer is more probable, in sum or as a mean over its tokens. Margin: mean log p(chosen) - log p(rejected). Loss: "
    "mean -log p of the held-out answers' tokens. Every question counts the same, however many pairs or answers it "
    "has. Answers are greedy; repetition is the part of 4-grams of words that stood in the answer before. Intervals "
    "and p: paired bootstrap over questions."
)
_METRICS = {"mc2": ("MC2", "{:.2f}"), "margin": ("margin", "{:+.1f} nats"), "loss": ("loss", "{:.2f} nats a token")}
_SAMPLES_SHOWN = 4
_PICTURES = {
    "evaluation": "margins, accuracy by category and lengths of answers, before and after",
    "training": "loss, reward margin, accuracy and learning rate",
}


def markdown(content: Mapping[str, Any], summary: str, pictures: Sequence[Path], links: str) -> str:
    """Returns the page.

    Args:
        content: The content of report.json.
        summary: What was trained, in a sentence.
        pictures: The pictures, relative to the page.
        links: Where more is to be found.
    """
    shown = {picture.stem: picture for picture in pictures}
    lines = [f"# {content['run']}", "", f"**{content['verdict']}**", "", summary, ""]
    lines += [*_table(content), *_folds(content), *_harness(content)]
    lines += _section("What to keep in mind", content["caveats"])
    lines += _picture(shown, "evaluation")
    for title, examples in (("What got better", "improved"), ("What got worse", "worse")):
        lines += _section(title, map(example_line, content["examples"][examples]))
    lines += [*_samples(content), *_prompt(content)]
    training = _picture(shown, "training")
    lines += ["## Training", "", *training] if training else []
    return "\n".join([*lines, links]) + "\n"


def _table(content: Mapping[str, Any]) -> Iterator[str]:
    if rows := tables.rows(content):
        yield from ("## Before and after", "", *_rows(tables.HEADINGS, rows))
        yield from ("", f"{tables.counts(content).capitalize()}. {_HOW_MEASURED}", "")
    if remarks := [f"- {remark}" for remark in tables.remarks(content)]:
        yield from (*remarks, "")


def _folds(content: Mapping[str, Any]) -> Iterator[str]:
    if folds := tables.fold_rows(content):
        yield from ("## The folds", "", *_rows(folds[0], folds[1:]), "")


def _harness(content: Mapping[str, Any]) -> Iterator[str]:
    if rows := tables.harness_rows(content):
        yield from ("## lm-evaluation-harness", "", *_rows(tables.HARNESS_HEADINGS, rows))
        yield from ("", f"{tables.harness_remark(content)}.", "")


def _rows(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(headings)} |"
    yield "|---|" + "--:|" * (len(headings) - 1)
    yield from (f"| {' | '.join(row)} |" for row in rows)


def _section(title: str, points: Iterator[str] | Sequence[str]) -> Iterator[str]:
    if points := [f"- {point}" for point in points]:
        yield from (f"## {title}", "", *points, "")


def example_line(example: Mapping[str, Any]) -> str:
    """Returns a question that changed much, before and after, in a line of Markdown."""
    name, form = _METRICS[example["metric"]]
    change = f"{form.format(example['before'])} -> {form.format(example['after'])}"
    texts = "; ".join(f"{which}: *{one_line(text)}*" for which, text in example["texts"].items())
    return f"**{one_line(example['prompt'])}** {name} {change}. {texts}"


def _samples(content: Mapping[str, Any]) -> Iterator[str]:
    samples = content["samples"]
    if not samples:
        return
    more = len(samples) - _SAMPLES_SHOWN
    yield from ("## Answers to held-out questions", "")
    for sample in samples[:_SAMPLES_SHOWN]:
        yield from (f"**{one_line(sample['prompt'])}**", "")
        yield from (f"- {name}: {one_line(sample[name])}" for name in ("before", "after", "chosen"))
        yield ""
    if more > 0:
        yield from (f"The first {_SAMPLES_SHOWN}, not chosen ones; {more} more are in [report.json](report.json).", "")


def _prompt(content: Mapping[str, Any]) -> Iterator[str]:
    if choice := content["multiple_choice"]:
        shown = choice["prompt_example"].replace("\n", "\n    ")
        yield from (f"Multiple choice ({choice['version']}), the first prompt:", "", f"    {shown}", "")


def _picture(shown: Mapping[str, Path], name: str) -> list[str]:
    return [f"![{_PICTURES[name]}]({shown[name].as_posix()})", ""] if name in shown else []


def one_line(text: str) -> str:
    """Returns a text without line breaks."""
    return " ".join(text.split()) or "(nothing)"
