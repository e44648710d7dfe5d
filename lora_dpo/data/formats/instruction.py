"""Formats of the SFT stage: a prompt and its answer, conversations, and the chosen answers of preferences."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from lora_dpo.data.formats.base import (
    BadRowError,
    Format,
    Options,
    Values,
    messages,
    optional_text,
    prompt_of,
    text_of,
    value_of,
    with_system,
)
from lora_dpo.data.formats.pairwise import answer_of, history
from lora_dpo.data.formats.registry import FORMATS, columns_of
from lora_dpo.data.pair import Message, user
from lora_dpo.data.row import Row
from lora_dpo.errors import UserError, did_you_mean, nearest
from lora_dpo.recipe.schema import AnswerColumns

_CONVERSATION = ("messages", "conversations")
_QUESTION = ("question", "prompt")
_ANSWER = ("answer", "completion", "response", "output")


@dataclass(frozen=True, slots=True)
class Taught:
    """One answer of a row, before it is checked and gets its place and group.

    Args:
        prompt: The conversation up to the answer.
        answer: The answer.
        group: The row's own name of the question, if it has one.
    """

    prompt: tuple[Message, ...]
    answer: str
    group: str | None = None


@dataclass(frozen=True, slots=True)
class AnswerFormat:
    """One kind of data with answers to be learnt.

    Args:
        name: What it is called in messages and reports.
        columns: Its columns in one line, for the list that is shown when nothing matches.
        recognises: Tells from the columns and the first rows whether a file is of this kind.
        convert: Makes the answers of one row; raises `BadRowError`.
        standing: Leaves out the rows that later ones of the same file take back.
    """

    name: str
    columns: str
    recognises: Callable[[set[str], Sequence[Values]], bool]
    convert: Callable[[Values], list[Taught]]
    standing: Callable[[Iterable[Row]], Iterable[Row]] = iter


def _convert_conversation(row: Values) -> list[Taught]:
    """Makes one of every answer in a conversation, each after the turns before it."""
    column = _first(_CONVERSATION, row)
    turns = with_system(messages(value_of(row, column), f"column '{column}'"), optional_text(row, "system"))
    answers = [place for place, turn in enumerate(turns) if turn["role"] == "assistant"]
    if not answers:
        raise BadRowError(f"the conversation in column '{column}' has no turn of the assistant")
    return [Taught(turns[:place], turns[place]["content"], _group(row)) for place in answers]


def instruction_of(row: Values, column: str = "instruction") -> tuple[Message, ...]:
    """Reads an instruction with what it is about, after the earlier rounds of its conversation.

    Raises:
        BadRowError: A value is missing, or of another kind.
    """
    question = text_of(row, column)
    context = optional_text(row, "input") or optional_text(row, "context")
    return history(row) + user(f"{question}\n{context}" if context.strip() else question)


def _convert_instruction(row: Values) -> list[Taught]:
    return _taught(row, instruction_of(row))


def _convert_answer(row: Values) -> list[Taught]:
    column = _first(_QUESTION, row)
    return _taught(row, prompt_of(value_of(row, column), f"column '{column}'"))


def _taught(row: Values, prompt: tuple[Message, ...]) -> list[Taught]:
    if row.get("label") is False:  # KTO's data: an answer that is not to be given
        return []
    return [
        Taught(with_system(prompt, optional_text(row, "system")), answer_of(row, _first(_ANSWER, row)), _group(row))
    ]


def _first(names: Sequence[str], row: Values) -> str:
    return next((name for name in names if name in row), names[0])


def _group(row: Values) -> str | None:
    group = row.get("group")
    return None if group in (None, "") else str(group)


def _chosen(known: Format) -> AnswerFormat:
    """Returns what makes of each question's pair the chosen answer."""
    return AnswerFormat(
        name=f"{known.name}: chosen answers",
        columns=known.columns,
        recognises=known.recognises,
        convert=lambda row: [Taught(pair.prompt, pair.chosen, pair.group) for pair in known.convert(row, Options())],
        standing=known.standing,
    )


def _is_conversation(columns: set[str], rows: Sequence[Values]) -> bool:
    return bool(columns & set(_CONVERSATION))


def _is_instruction(columns: set[str], rows: Sequence[Values]) -> bool:
    return "instruction" in columns and bool(columns & set(_ANSWER))


def _is_answer(columns: set[str], rows: Sequence[Values]) -> bool:
    return bool(columns & set(_QUESTION)) and bool(columns & set(_ANSWER))


_INSTRUCTIONS = (
    # Special before general: sets of conversations often have a column with the first prompt as well.
    AnswerFormat(
        name="conversations",
        columns="messages or conversations: [{role, content}] or [{from, value}] [, system, group]",
        recognises=_is_conversation,
        convert=_convert_conversation,
    ),
    AnswerFormat(
        name="instructions",
        columns=f"instruction, {' or '.join(_ANSWER)} [, input or context, system, history, group]",
        recognises=_is_instruction,
        convert=_convert_instruction,
    ),
    AnswerFormat(
        name="questions and answers",
        columns=f"{' or '.join(_QUESTION)}, {' or '.join(_ANSWER)} (texts or messages) [, system, group, label]",
        recognises=_is_answer,
        convert=_convert_answer,
    ),
)
ANSWER_FORMATS = (*map(_chosen, FORMATS), *_INSTRUCTIONS)
"""The known formats, in the order in which they are tried."""


def recognise_answers(rows: Sequence[Values], where: str) -> AnswerFormat:
    """Returns the format of a file with answers.

    Args:
        rows: The file's first rows.
        where: The file, for the error.

    Raises:
        UserError: No format has these columns.
    """
    columns = columns_of(rows)
    for known in ANSWER_FORMATS:
        if known.recognises(set(columns), rows):
            return known
    listed = "\n".join(f"  {known.name}: {known.columns}" for known in _INSTRUCTIONS)
    near = {kind: _nearest(names, columns) for kind, names in (("prompt", _QUESTION), ("answer", _ANSWER))}
    mapping = ", ".join(f"{kind}: {column or '...'}" for kind, column in near.items())
    raise UserError(
        f"the columns {', '.join(columns) or '(none)'} are no known format of answers",
        why=f"Known formats and their columns:\n{listed}\n  preferences, of which the chosen answers are taken",
        fix=f"Say which column is what in the recipe: 'sft.columns={{{mapping}}}'",
        where=where,
    )


def mapped_answers(mapping: AnswerColumns, rows: Sequence[Values], where: str) -> AnswerFormat:
    """Returns the format that the recipe's `sft.columns` describes.

    Args:
        mapping: Which column is what.
        rows: The file's first rows.
        where: The file, for the error.

    Raises:
        UserError: A column that the mapping names is not there.
    """
    columns, names = columns_of(rows), mapping.model_dump(exclude_none=True)
    for key, column in names.items():
        if column not in columns:
            what = f"sft.columns.{key} is '{column}', but there is no such column"
            raise UserError(what, fix=did_you_mean(column, columns), where=where)

    def convert(row: Values) -> list[Taught]:
        try:
            return _convert_answer({key: row.get(column) for key, column in names.items()})
        except BadRowError as bad:
            given = ", ".join(f"{key}={column}" for key, column in names.items())
            raise BadRowError(f"{bad} (sft.columns: {given})") from None

    return AnswerFormat("sft.columns", ", ".join(names.values()), lambda columns, rows: True, convert)


def _nearest(names: Sequence[str], columns: Sequence[str]) -> str | None:
    return next(filter(None, (nearest(name, columns) for name in names)), None)
