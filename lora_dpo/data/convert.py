"""Turns the rows of one file or data set into pairs and questions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain, islice
from typing import TypeVar

from lora_dpo.data.formats.base import AnswerSet, BadRowError, Candidate, Format, Options, Values
from lora_dpo.data.formats.registry import mapped, recognise
from lora_dpo.data.pair import Message, Pair, group_of
from lora_dpo.data.question import Question
from lora_dpo.data.report import ReadReport
from lora_dpo.data.row import Row
from lora_dpo.errors import UserError
from lora_dpo.recipe.schema import DataSection

T = TypeVar("T")

_ROWS_LOOKED_AT = 100


def pair_format(data: DataSection) -> Callable[[Sequence[Values], str], Format]:
    """Returns what finds the format of preferences, as `format_of` takes it.

    Args:
        data: The recipe's data section.
    """
    if data.columns is None:
        return recognise
    return partial(mapped, data.columns)


def format_of(
    rows: Iterable[Row], find: Callable[[Sequence[Values], str], T], report: ReadReport, where: str
) -> tuple[T, Iterator[Row]]:
    """Finds the format of a file from its first rows.

    Args:
        rows: The file's rows.
        find: Returns the format of a file's first rows; it is given the file as well, for errors.
        report: Why rows could not be read, for the error if that is all of them.
        where: The file, for errors.

    Returns:
        The format, and all rows, the first ones included.

    Raises:
        UserError: There is no row, or no format fits.
    """
    stream = iter(rows)
    first = list(islice(stream, _ROWS_LOOKED_AT))
    if not first:
        reasons = "\n".join(f"  {reason}" for reason in report.reasons)
        raise UserError("no row could be read", why=f"The first reasons:\n{reasons}" if reasons else "", where=where)
    return find([row.values for row in first], where), chain(first, stream)


def convert_rows(
    rows: Iterable[Row], known: Format, data: DataSection, report: ReadReport, source: int
) -> Iterator[tuple[list[Pair], Question | None]]:
    """Yields, for each row of one format, its pairs, and its question where the row lists all answers.

    Args:
        rows: The rows.
        known: Their format.
        data: The recipe's data section.
        report: Where bad rows, and rows without a pair, are counted.
        source: Number of the recipe's source, from 0.

    Raises:
        UserError: A row cannot be converted, and `data.on_bad_row` is `error`.
    """
    options = Options(pairs=data.pairs, min_margin=data.min_margin, seed=data.split.seed)
    for row in rows:
        try:
            candidates = known.convert(row.values, options)
            pairs = [_pair(candidate, row.where, source) for candidate in candidates]
            question = _question(known.answers(row.values), row.where, source) if known.answers else None
        except BadRowError as bad:
            report.bad_row(str(bad), row.where, data.on_bad_row)
            continue
        report.rows_without_pair += not pairs
        yield pairs, question


def _question(found: AnswerSet, where: str, source: int) -> Question | None:
    """Returns the question, or None where there is nothing to choose between."""
    correct, incorrect = tuple(found.correct), tuple(found.incorrect)
    if found.best and found.best not in correct:
        correct = (found.best, *correct)
    if not correct or not incorrect:
        return None
    return Question(
        prompt=found.prompt,
        correct=correct,
        incorrect=incorrect,
        best=found.best or correct[0],
        best_incorrect=found.best_incorrect,
        category=found.category,
        group=group_of(found.prompt),
        origin=where,
        source=source,
    )


def check_prompt(prompt: Sequence[Message]) -> None:
    """Checks that a conversation is one that is answered.

    Raises:
        BadRowError: It has no turn, does not end in the user's, or has a system turn elsewhere than in front.
    """
    roles = [turn["role"] for turn in prompt]
    if not roles:
        raise BadRowError("the prompt has no turn")
    if roles[-1] != "user":
        raise BadRowError(f"the prompt ends in a turn of the {roles[-1]}, not of the user")
    if "system" in roles[1:]:
        raise BadRowError("the prompt has a system turn after the first turn")


def _pair(candidate: Candidate, where: str, source: int) -> Pair:
    check_prompt(candidate.prompt)
    return Pair(
        prompt=candidate.prompt,
        chosen=candidate.chosen,
        rejected=candidate.rejected,
        group=candidate.group or group_of(candidate.prompt),
        origin=where,
        source=source,
    )
