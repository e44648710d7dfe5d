"""What became of every held-out question: the numbers behind a report, one line a question."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypedDict

from lora_dpo.files import write_text

_EXAMPLES = 3


@dataclass(frozen=True, slots=True)
class Outcome:
    """One held-out question, before and after.

    Attributes:
        group: Identifies the question.
        prompt: The last turn of its prompt.
        category: What it is about, or the empty text.
        before: Values by the metric's name, as far as there are any: `mc0`, `mc1`, `mc2`; means over its pairs of
            `accuracy`, `normalised_accuracy`, `margin`; of its greedy answer `tokens`, `words`, `repetition`,
            `refusal`, `ended`.
        after: The same after training.
        texts: Answers by what they are: the preferred and the worse one of its first pair (`chosen`, `rejected`), and
            the most probable one of all its listed answers (`favourite before`, `favourite after`).
    """

    group: str
    prompt: str
    category: str = ""
    before: dict[str, float] = field(default_factory=dict)
    after: dict[str, float] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)

    def gain(self, metric: str) -> float:
        """Returns by how much a metric rose."""
        return self.after[metric] - self.before[metric]


class Example(TypedDict):
    """A question that changed, by which metric, and the answers that show it."""

    prompt: str
    category: str
    metric: str
    before: float
    after: float
    texts: dict[str, str]


class Examples(TypedDict):
    """The questions that changed most, the largest change first."""

    improved: list[Example]
    worse: list[Example]


def examples(outcomes: Sequence[Outcome]) -> Examples:
    """Returns the questions that changed most: by MC2, or where the data has no such questions by the margin."""
    metric = next((name for name in ("mc2", "margin") if any(name in each.after for each in outcomes)), None)
    if metric is None:
        return {"improved": [], "worse": []}
    ranked = sorted((each for each in outcomes if metric in each.after), key=lambda each: -each.gain(metric))
    rose = [_example(each, metric) for each in ranked if each.gain(metric) > 0]
    fell = [_example(each, metric) for each in reversed(ranked) if each.gain(metric) < 0]
    return {"improved": rose[:_EXAMPLES], "worse": fell[:_EXAMPLES]}


def _example(outcome: Outcome, metric: str) -> Example:
    shown = ("best", "favourite before", "favourite after") if metric == "mc2" else ("chosen", "rejected")
    return {
        "prompt": outcome.prompt,
        "category": outcome.category,
        "metric": metric,
        "before": outcome.before[metric],
        "after": outcome.after[metric],
        "texts": {name: outcome.texts[name] for name in shown},
    }


def write_outcomes(file: Path, outcomes: Sequence[Outcome]) -> None:
    """Writes one question a line, as JSON. The file appears whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, "".join(json.dumps(asdict(each), ensure_ascii=False) + "\n" for each in outcomes))


def read_outcomes(file: Path) -> list[Outcome]:
    """Reads what `write_outcomes` wrote; a run without an evaluation has none."""
    return list(_read(file)) if file.is_file() else []


def _read(file: Path) -> Iterator[Outcome]:
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            yield Outcome(**json.loads(line))
