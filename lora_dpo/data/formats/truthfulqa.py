"""TruthfulQA: one question, several correct and several incorrect answers.

Lin, Hilton, Evans: TruthfulQA, https://arxiv.org/abs/2109.07958. Read are the CSV file of the authors (old form, and
the form of 2025 with a column `Best Incorrect Answer`) and the `generation` configuration on the Hub.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from lora_dpo.data.formats.base import (
    AnswerSet,
    BadRowError,
    Candidate,
    Format,
    Options,
    Values,
    checked_text,
    optional_text,
    select,
    text_of,
    texts_of,
)
from lora_dpo.data.pair import user

_CSV_COLUMNS = {"Question", "Best Answer", "Correct Answers", "Incorrect Answers"}
_HUB_COLUMNS = {"question", "best_answer", "correct_answers", "incorrect_answers"}


def split_answers(text: str, best: str = "") -> list[str]:
    """Splits the answers of one CSV field at each semicolon that white space or the end follows.

    Args:
        text: The field, such as `Nothing happens; You digest them;`.
        best: An answer known from a column of its own; it stays whole even if a semicolon stands in it.
    """
    if ";" in best and best in text:
        before, whole, after = text.partition(best)
        return split_answers(before) + [whole] + split_answers(after)
    answers = (answer.strip(" \t\r\n;") for answer in re.split(r";(?:\s|$)", text))
    return [answer for answer in answers if answer]


def pairs_from(read: Callable[[Values], AnswerSet]) -> Callable[[Values, Options], list[Candidate]]:
    """Returns the `convert` of a format whose rows' answers are found by `read`."""
    return lambda row, options: _answer_pairs(read(row), options)


def category_of(row: Values, column: str) -> str:
    """Returns a row's category, or the empty text where it has none."""
    value = row.get(column)
    return "" if value is None else checked_text(str(value), f"column '{column}'").strip()


def _answer_pairs(found: AnswerSet, options: Options) -> list[Candidate]:
    # TruthfulQA lists 'Unknown' as correct and incorrect for two questions: no preference can be read from that.
    right = [answer for answer in dict.fromkeys(found.correct) if answer.strip() and answer not in found.incorrect]
    wrong = [answer for answer in dict.fromkeys(found.incorrect) if answer.strip() and answer not in found.correct]
    if options.pairs == "best":
        right = [found.best] if found.best else right[:1]
        wrong = [found.best_incorrect] if found.best_incorrect else wrong[:1]
    if not right or not wrong:
        raise BadRowError(f"the question has no {'incorrect' if right else 'correct'} answer")
    candidates = [Candidate(found.prompt, better, worse) for better in right for worse in wrong]
    return select(candidates, options, found.prompt[-1]["content"])


def _csv_answers(row: Values) -> AnswerSet:
    best, best_incorrect = text_of(row, "Best Answer").strip(), optional_text(row, "Best Incorrect Answer").strip()
    return AnswerSet(
        prompt=user(text_of(row, "Question")),
        correct=_distinct(split_answers(text_of(row, "Correct Answers"), best)),
        incorrect=_distinct(split_answers(text_of(row, "Incorrect Answers"), best_incorrect)),
        best=best,
        best_incorrect=best_incorrect,
        category=category_of(row, "Category"),
    )


def _hub_answers(row: Values) -> AnswerSet:
    return AnswerSet(
        prompt=user(text_of(row, "question")),
        correct=_distinct(texts_of(row, "correct_answers")),
        incorrect=_distinct(texts_of(row, "incorrect_answers")),
        best=text_of(row, "best_answer"),
        category=category_of(row, "category"),
    )


def _distinct(answers: list[str]) -> list[str]:
    """Returns the answers that say something, each once."""
    return list(dict.fromkeys(answer for answer in answers if answer.strip()))


def _is_csv(columns: set[str], rows: Sequence[Values]) -> bool:
    return columns >= _CSV_COLUMNS


def _is_hub(columns: set[str], rows: Sequence[Values]) -> bool:
    return columns >= _HUB_COLUMNS


TRUTHFULQA_CSV = Format(
    name="TruthfulQA (CSV)",
    columns="Question, Best Answer, Correct Answers, Incorrect Answers [, Best Incorrect Answer, Category]",
    recognises=_is_csv,
    convert=pairs_from(_csv_answers),
    answers=_csv_answers,
)
TRUTHFULQA_HUB = Format(
    name="TruthfulQA (Hub, generation)",
    columns="question, best_answer, correct_answers, incorrect_answers [, category]",
    recognises=_is_hub,
    convert=pairs_from(_hub_answers),
    answers=_hub_answers,
)
