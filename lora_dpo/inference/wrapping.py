"""Text that arrives in pieces, broken between words at the width of a terminal."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from rich.cells import cell_len

_PARTS = re.compile(r"\n|[^\S\n]+|\S+")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_TAB = "    "


def printable(text: str) -> str:
    """Returns a text without control characters but line breaks: what a model writes must not move the cursor."""
    return _CONTROL.sub("", text.replace("\t", _TAB))


def wrapped(pieces: Iterable[str], width: int) -> Iterator[str]:
    """Yields the pieces with line breaks where the next word would not fit.

    Control characters are left out; see `printable`.

    Args:
        pieces: Parts of a text, whole words each.
        width: Cells of a line. A longer word is left to the terminal.
    """
    column, space = 0, ""
    for piece in pieces:
        for part in _PARTS.findall(printable(piece)):
            if part == "\n":
                yield "\n"
                column, space = 0, ""
            elif part.isspace():
                space += part
            else:
                cells = cell_len(space) + cell_len(part)
                if column > 0 and column + cells > width:
                    yield "\n"
                    column, space, cells = 0, "", cell_len(part)
                yield space + part
                column, space = column + cells, ""
