"""TruthfulQA: one question, several correct and several incorrect answers.

Lin, Hilton, Evans: TruthfulQA, https://arxiv.org/abs/2109.07958. Read are the CSV file of the authors (old form, and
the form of 2025 with a column `Best Incorrect Answer`) and the `generation` configuration on the Hub.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from lora_dpo.data.formats.base import (
    BadRowError,
    Candidate,
    Format,
    Options,
    Values,
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


def _convert_csv(row: Values, options: Options) -> list[Candidate]:
    best, best_incorrect = text_of(row, "Best Answer").strip(), optional_text(row, "Best Incorrect Answer").strip()
    correct = split_answers(text_of(row, "Correct Answers"), best)
    incorrect = split_answers(text_of(row, "Incorrect Answers"), best_incorrect)
    return _pairs(text_of(row, "Question"), best, best_incorrect, correct, incorrect, options)


def _convert_hub(row: Values, options: Options) -> list[Candidate]:
    correct, incorrect = texts_of(row, "correct_answers"), texts_of(row, "incorrect_answers")
    return _pairs(text_of(row, "question"), text_of(row, "best_answer"), "", correct, incorrect, options)


def _pairs(
    question: str, best: str, best_incorrect: str, correct: list[str], incorrect: list[str], options: Options
) -> list[Candidate]:
    # TruthfulQA lists 'Unknown' as correct and incorrect for two questions: no preference can be read from that.
    right = [answer for answer in dict.fromkeys(correct) if answer.strip() and answer not in incorrect]
    wrong = [answer for answer in dict.fromkeys(incorrect) if answer.strip() and answer not in correct]
    if options.pairs == "best":
        right, wrong = [best] if best else right[:1], [best_incorrect] if best_incorrect else wrong[:1]
    if not right or not wrong:
        raise BadRowError(f"the question has no {'incorrect' if right else 'correct'} answer")
    candidates = [Candidate(user(question), better, worse) for better in right for worse in wrong]
    return select(candidates, options, question)


def _is_csv(columns: set[str], rows: Sequence[Values]) -> bool:
    return columns >= _CSV_COLUMNS


def _is_hub(columns: set[str], rows: Sequence[Values]) -> bool:
    return columns >= _HUB_COLUMNS


TRUTHFULQA_CSV = Format(
    name="TruthfulQA (CSV)",
    columns="Question, Best Answer, Correct Answers, Incorrect Answers [, Best Incorrect Answer]",
    recognises=_is_csv,
    convert=_convert_csv,
)
TRUTHFULQA_HUB = Format(
    name="TruthfulQA (Hub, generation)",
    columns="question, best_answer, correct_answers, incorrect_answers",
    recognises=_is_hub,
    convert=_convert_hub,
)
