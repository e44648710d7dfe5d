"""Prompts that are to be answered, from files that need hold nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_dpo.data.convert import check_prompt, format_of
from lora_dpo.data.formats.base import BadRowError, Values, messages, optional_text, prompt_of, value_of, with_system
from lora_dpo.data.formats.instruction import instruction_of
from lora_dpo.data.formats.registry import columns_of
from lora_dpo.data.pair import Message
from lora_dpo.data.report import ReadReport
from lora_dpo.data.row import Row
from lora_dpo.data.sources import streams
from lora_dpo.data.text_lines import text_lines
from lora_dpo.errors import UserError, nearest
from lora_dpo.recipe.schema import Source

_TEXT_SUFFIXES = (".txt", ".txt.gz")
_MEND = "Mend this row, or take it out."


@dataclass(frozen=True, slots=True)
class PromptRow:
    """A prompt, and where it is from.

    Attributes:
        turns: The conversation up to the answer.
        id: The row's own name, or None.
        origin: File and line.
    """

    turns: tuple[Message, ...]
    id: Any
    origin: str

    @property
    def shown(self) -> str | list[Message]:
        """The prompt as files have it: a text where it is one turn, else messages."""
        return shown_prompt(self.turns)


def shown_prompt(turns: Sequence[Message]) -> str | list[Message]:
    """Returns a prompt as files have it: a text where it is one turn, else messages."""
    return turns[0]["content"] if len(turns) == 1 else list(turns)


def read_prompts(path: str, *, key: str, system: str = "") -> list[PromptRow]:
    """Reads prompts, in order.

    A text file (`.txt`) has one on every line that is not blank. Other files, as `data.path` takes them, have a column
    `prompt`, `question`, `instruction` (with `input` or `context`) or `messages`; `system` and `id` are read as well.

    Args:
        path: File, folder or Hub id.
        key: What names the path, for errors.
        system: A system turn for prompts that have none, or the empty text.

    Raises:
        UserError: It cannot be read, has no such column, or a prompt is empty or none that can be answered.
    """
    report = ReadReport(remedy=_MEND)
    file = Path(path).expanduser()
    if path.lower().endswith(_TEXT_SUFFIXES) and file.is_file():
        sources: Iterable[tuple[str, Iterable[Row]]] = [(path, _lines(file))]
    else:
        sources = streams(Source(path=path), "error", report, key=key)
    return [prompt for where, rows in sources for prompt in _prompts(rows, report, where, system)]


def _prompts(rows: Iterable[Row], report: ReadReport, where: str, system: str) -> Iterator[PromptRow]:
    read, rows = format_of(rows, _recognise, report, where)
    for row in rows:
        try:
            turns = with_system(with_system(read(row.values), optional_text(row.values, "system")), system)
            check_prompt(turns)
            if not turns[-1]["content"].strip():
                raise BadRowError("the prompt is empty")
        except BadRowError as bad:
            raise UserError(str(bad), fix=_MEND, where=row.where) from None
        yield PromptRow(turns, row.values.get("id"), row.where)


def _lines(file: Path) -> Iterator[Row]:
    with text_lines(file) as lines:
        for line in lines:
            if line.strip():
                yield Row({"prompt": line.strip()}, lines.where)


def _recognise(rows: Sequence[Values], where: str) -> Callable[[Values], tuple[Message, ...]]:
    """Returns what reads the prompt of a row."""
    columns = columns_of(rows)
    for name, read in _READERS.items():
        if (column := next((column for column in columns if column.casefold() == name), None)) is not None:
            return lambda row: read(row, column)
    near = next(((column, name) for name in _READERS if (column := nearest(name, columns))), None)
    raise UserError(
        f"the columns {', '.join(columns) or '(none)'} hold no prompts",
        why=f"A prompt is in a column {', '.join(_READERS)}.",
        fix=f"Rename '{near[0]}' to '{near[1]}'." if near else "Rename the column.",
        where=where,
    )


def _text_or_messages(row: Values, column: str) -> tuple[Message, ...]:
    return prompt_of(value_of(row, column), f"column '{column}'")


def _messages(row: Values, column: str) -> tuple[Message, ...]:
    return messages(value_of(row, column), f"column '{column}'")


_READERS: dict[str, Callable[[Values, str], tuple[Message, ...]]] = {
    "prompt": _text_or_messages,
    "question": _text_or_messages,
    "instruction": instruction_of,
    "messages": _messages,
}
"""Known columns, in the order in which they are looked for."""
