"""What `lora-dpo collect` writes: a vote a line, and lines that take a vote back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from lora_dpo.data.formats.base import Format, Values
from lora_dpo.data.formats.pairwise import convert_plain
from lora_dpo.data.row import Row

T = TypeVar("T")

UNDO = "undo"
"""The choice of a line that takes back the vote whose id is in its column `undoes`."""
EDITED = "edited"
"""Column that says whether the chosen answer was written by a person, out of the better one."""

_COLUMNS = {"prompt", "choice", "annotator", "left", "right"}


def standing(lines: Iterable[T], values: Callable[[T], Values]) -> list[T]:
    """Returns the votes that were not taken back, in their order.

    Args:
        lines: All lines of a file.
        values: Returns a line's columns.
    """
    known = [(line, values(line)) for line in lines]
    undone = {columns.get("undoes") for _, columns in known if columns.get("choice") == UNDO}
    return [line for line, columns in known if columns.get("choice") != UNDO and columns.get("id") not in undone]


def _standing_rows(rows: Iterable[Row]) -> list[Row]:
    return standing(rows, lambda row: row.values)


def _is_collected(columns: set[str], rows: Sequence[Values]) -> bool:
    return columns >= _COLUMNS


COLLECTED = Format(
    name="lora-dpo collect",
    columns="prompt, choice, chosen, rejected, annotator, left, right",
    recognises=_is_collected,
    convert=convert_plain,
    standing=_standing_rows,
)
