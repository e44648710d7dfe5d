"""Reads text files line by line, and says exactly where one is damaged."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from lora_dpo.errors import UserError

_UTF8_BOM = b"\xef\xbb\xbf"
_UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")


@contextmanager
def text_lines(path: Path) -> Iterator[TextLines]:
    """Opens a UTF-8 file, plain or (if its name ends in `.gz`) gzipped."""
    gzipped = path.name.lower().endswith(".gz")
    with cast(BinaryIO, gzip.open(path, "rb")) if gzipped else path.open("rb") as stream:
        yield TextLines(path, stream)


class TextLines(Iterator[str]):
    r"""The lines of an open UTF-8 file.

    Lines end at `\n` only: JSON and CSV texts may hold other separators such as U+2028.

    Args:
        path: Name of the file, for errors.
        stream: The file's bytes.

    Attributes:
        number: Number of the last line returned, counted from 1.
        complete: Whether the last line returned ended in a line break.
    """

    def __init__(self, path: Path, stream: BinaryIO) -> None:
        self.path = path
        self.number = 0
        self.complete = True
        self._stream = stream

    def __next__(self) -> str:
        """Returns the next line with its line break."""
        raw = self._read_line()
        if not raw:
            raise StopIteration
        self.number += 1
        self.complete = raw.endswith(b"\n")
        if self.number == 1:
            self._refuse_utf16(raw)
            raw = raw.removeprefix(_UTF8_BOM)
        return self._decode(raw)

    @property
    def where(self) -> str:
        """File and line of the last line returned."""
        return f"{self.path}, line {self.number}"

    @property
    def cut_off(self) -> str:
        """A remark for an error on the last line returned, if the file ends within that line."""
        return "" if self.complete else "; the file ends within this line, so it was probably cut off"

    def _read_line(self) -> bytes:
        try:
            return self._stream.readline()
        except EOFError:
            raise UserError(
                f"the compressed file ends too early, after line {self.number}",
                why="It is probably half written or was not copied to the end.",
                fix="Copy or make the file again; `gzip -t` checks it.",
                where=str(self.path),
            ) from None
        except (gzip.BadGzipFile, zlib.error) as error:
            raise UserError(
                f"this is no readable gzip file ({error})",
                fix="If it is not compressed, rename it without .gz; otherwise make or copy it again.",
                where=str(self.path),
            ) from None

    def _refuse_utf16(self, raw: bytes) -> None:
        if raw.startswith(_UTF16_BOMS):
            raise UserError(
                f"the file is encoded as UTF-16 (it starts with the bytes {raw[:2].hex(' ')}), not as UTF-8",
                fix=f"Convert it: iconv -f UTF-16 -t UTF-8 '{self.path}' > NEW_FILE",
                where=str(self.path),
            )

    def _decode(self, raw: bytes) -> str:
        if b"\0" in raw:
            raise UserError(
                f"the file holds binary data: a NUL byte at position {raw.index(0) + 1} of the line",
                why="Data files are text; this one is damaged, or of another kind than its name says.",
                fix="Check it with `file`, and give it the suffix of what it is.",
                where=self.where,
            )
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(
                f"byte 0x{raw[error.start]:02x} at position {error.start + 1} of the line is not valid UTF-8",
                why="The file is in another encoding, or damaged.",
                fix=f"If it came from Excel or Windows: iconv -f WINDOWS-1252 -t UTF-8 '{self.path}' > NEW_FILE",
                where=self.where,
            ) from None
