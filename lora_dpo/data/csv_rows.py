"""Reads the rows of CSV and TSV files, with true line numbers."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from lora_dpo.data.row import Row, Unreadable
from lora_dpo.data.text_lines import text_lines
from lora_dpo.errors import UserError

# csv's own limit is 131,072 characters a field; long conversations exceed it. This is the largest C long anywhere.
_FIELD_LIMIT = 2**31 - 1


def read_csv(path: Path, delimiter: str = ",") -> Iterator[Row | Unreadable]:
    """Yields the rows below the header; a row's line is the one it starts on."""
    csv.field_size_limit(_FIELD_LIMIT)
    with text_lines(path) as lines:
        records = csv.reader(lines, delimiter=delimiter, strict=True)
        header: list[str] | None = None
        while True:
            # A quoted field may span lines, so a record starts on the line after the last one consumed.
            where = f"{path}, line {lines.number + 1}"
            try:
                record = next(records)
            except StopIteration:
                return
            except csv.Error as error:
                yield _invalid(error, where, is_header=header is None)
                continue
            if not record:
                continue
            if header is None:
                header = _checked_header(record, delimiter, where)
            elif len(record) == len(header):
                yield Row(dict(zip(header, record, strict=True)), where)
            else:
                count = f"the row has {len(record)} fields where the header has {len(header)}"
                yield Unreadable(count + lines.cut_off, where)


def read_tsv(path: Path) -> Iterator[Row | Unreadable]:
    """Yields the rows of a file whose columns are divided by tabs."""
    return read_csv(path, delimiter="\t")


def _invalid(error: csv.Error, where: str, *, is_header: bool) -> Unreadable:
    if "unexpected end of data" in str(error):
        # Never skipped: the open quote has swallowed every row after it.
        raise UserError(
            'a quote (") opened in this row is never closed, so the file ends within a field',
            why="Either the quote is a stray one, or the file is half written.",
            fix='Double the quote ("") or remove it, or make the file again.',
            where=where,
        )
    if is_header:
        raise UserError(f"the header is not valid CSV ({error})", fix="Mend the first line.", where=where)
    return Unreadable(f"the row is not valid CSV ({error})", where)


def _checked_header(header: list[str], delimiter: str, where: str) -> list[str]:
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        what = f"the column '{twice[0]}' stands in the header more than once"
        raise UserError(what, fix="Rename one of them.", where=where)
    other = next((d for d in ";\t,|" if d != delimiter and d in header[0]), None)
    if len(header) == 1 and other is not None:
        raise UserError(
            f"the header {header[0]!r} is one column, divided by {other!r}",
            why=f"The columns of this kind of file are divided by {delimiter!r}.",
            fix="Rename the file to .tsv." if other == "\t" else f"Save it again with {delimiter!r} between columns.",
            where=where,
        )
    return header
