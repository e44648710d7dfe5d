"""Text that arrives in pieces, broken between words at the width of a terminal."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from rich.cells import cell_len

_PARTS = re.compile(r"\n|[^\S\n]+|\S+")
_UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Control characters, and those that turn the direction of all that follows them on the line."""
_SHOWN = str.maketrans({"\t": "    ", "\u2028": "\n", "\u2029": "\n"})


def printable(text: str) -> str:
    """Returns a text without control characters but line breaks: what a model writes must not move the cursor.

    Nor may it turn the direction of what stands beside it; the direction of its own letters stays.
    """
    return _UNSEEN.sub("", text.translate(_SHOWN))


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
