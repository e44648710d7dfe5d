"""TruthfulQA as multiple choice: answers with labels, 1 for correct and 0 for incorrect.

Read are the authors' `mc_task.json`, whose targets are objects {answer: label}, and the `multiple_choice` configuration
on the Hub, whose targets are {choices: [...], labels: [...]}. Answers stay exactly as they are, empty ones included:
the numbers that others compute from these files can be compared only on the same answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lora_dpo.data.formats.base import (
    AnswerSet,
    BadRowError,
    Format,
    Values,
    checked_text,
    shown,
    text_of,
    value_of,
)
from lora_dpo.data.formats.truthfulqa import category_of, pairs_from
from lora_dpo.data.pair import user

_COLUMNS = {"question", "mc1_targets", "mc2_targets"}


def _answers(row: Values) -> AnswerSet:
    correct, incorrect = _targets(row, "mc2_targets")
    best, others = _against_one(row, "mc1_targets")
    if set(others) != set(incorrect):
        odd = sorted(set(others) ^ set(incorrect))[0]
        raise BadRowError(f"columns 'mc1_targets' and 'mc2_targets' differ in the incorrect answer {shown(odd)}")
    return AnswerSet(
        prompt=user(text_of(row, "question")),
        correct=correct,
        incorrect=incorrect,
        best=best,
        best_incorrect=_best_incorrect(row, best),
        category=category_of(row, "category"),
    )


def _best_incorrect(row: Values, best: str) -> str:
    """Returns the one answer that mc0 sets against the best; the Hub has no such column."""
    if row.get("mc0_targets") is None:
        return ""
    right, wrong = _against_one(row, "mc0_targets")
    if right != best:
        raise BadRowError(f"column 'mc0_targets' calls {shown(right)} correct, 'mc1_targets' {shown(best)}")
    if len(wrong) != 1:
        raise BadRowError(f"column 'mc0_targets' has {len(wrong)} incorrect answers, not one")
    return wrong[0]


def _against_one(row: Values, column: str) -> tuple[str, list[str]]:
    """Returns the only correct answer of a column, and the incorrect ones."""
    correct, incorrect = _targets(row, column)
    if len(correct) != 1:
        raise BadRowError(f"column '{column}' has {len(correct)} correct answers, not one")
    return correct[0], incorrect


def _targets(row: Values, column: str) -> tuple[list[str], list[str]]:
    """Returns the answers labelled 1 and those labelled 0, each in their order."""
    targets = value_of(row, column)
    if not isinstance(targets, Mapping):
        raise BadRowError(f"column '{column}' is {shown(targets)}, not an object with answers and labels")
    if isinstance(targets.get("choices"), list):
        answers, labels = targets["choices"], targets.get("labels")
        if not isinstance(labels, list) or len(labels) != len(answers):
            raise BadRowError(f"column '{column}' has {len(answers)} choices, but as labels {shown(labels)}")
    else:
        answers, labels = list(targets), list(targets.values())
    found: dict[int, list[str]] = {1: [], 0: []}
    for number, (answer, label) in enumerate(zip(answers, labels, strict=True), start=1):
        name = f"column '{column}', item {number}"
        if label not in (0, 1):
            raise BadRowError(f"{name} has the label {shown(label)}; known are 0 and 1")
        found[int(label)].append(checked_text(answer, name))
    return found[1], found[0]


def _is_multiple_choice(columns: set[str], rows: Sequence[Values]) -> bool:
    return columns >= _COLUMNS


MULTIPLE_CHOICE = Format(
    name="TruthfulQA (multiple choice)",
    columns="question, mc1_targets, mc2_targets [, mc0_targets, category]: {answer: 0 or 1} or {choices, labels}",
    recognises=_is_multiple_choice,
    convert=pairs_from(_answers),
    answers=_answers,
)
