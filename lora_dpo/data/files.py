"""Reads rows from JSON, JSON Lines, CSV, TSV and Parquet files, and from folders of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from lora_dpo.data.csv_rows import read_csv, read_tsv
from lora_dpo.data.json_rows import read_json, read_jsonl
from lora_dpo.data.report import OnBadRow, ReadReport
from lora_dpo.data.row import Row, Unreadable
from lora_dpo.errors import UserError

_WRITE_AGAIN = "Check that it was written or copied to the end."


def read_rows(path: Path, on_bad_row: OnBadRow, report: ReadReport) -> Iterator[Row]:
    """Yields the rows of a file, or of all data files in a folder (in order of their names).

    Args:
        path: A file with one of the suffixes in `READERS` (text formats also with `.gz`), or a folder.
        on_bad_row: Whether a row that cannot be read stops the reading, or is skipped and counted.
        report: Where rows and bad rows are counted.

    Raises:
        UserError: The file does not exist, is empty, damaged, of an unknown kind, or has a bad row.
    """
    for file in data_files(path):
        yield from _read_file(file, on_bad_row, report)


def data_files(path: Path) -> list[Path]:
    """Returns the data files that a path stands for: itself, or those directly in the folder.

    Raises:
        UserError: The path does not exist, or the folder holds no data file.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError("there is no such file or folder", fix="Check the path.", where=str(path))
    files = sorted(f for f in path.iterdir() if f.is_file() and _suffix(f) and not f.name.startswith("."))
    if not files:
        raise UserError(
            "the folder holds no data file",
            why=f"Files directly in it are read if they end in {_known_suffixes()}; sub-folders are not searched.",
            fix="Name the folder that holds the files. A downloaded Hub data set is read as a whole if the source "
            "names its split: {path: FOLDER, hub_split: train}.",
            where=str(path),
        )
    return files


def _read_file(path: Path, on_bad_row: OnBadRow, report: ReadReport) -> Iterator[Row]:
    suffix = _suffix(path)
    if suffix is None:
        raise UserError(
            f"'{path.name}' is no known kind of data file",
            fix=f"Known are {_known_suffixes()}; all but .parquet also with .gz. Convert or rename the file.",
            where=str(path),
        )
    try:
        if path.stat().st_size == 0:
            raise UserError("the file is empty", fix=_WRITE_AGAIN, where=str(path))
        rows_before = report.rows
        for row in READERS[suffix](path):
            report.rows += 1
            if isinstance(row, Unreadable):
                report.bad_row(row.reason, row.where, on_bad_row)
            else:
                yield row
        if report.rows == rows_before:
            below = " below its header" if suffix in (".csv", ".tsv") else ""
            raise UserError(f"the file holds no rows{below}", fix=_WRITE_AGAIN, where=str(path))
    except PermissionError:
        raise UserError("the file may not be read", fix="Check its owner and mode.", where=str(path)) from None


def _suffix(path: Path) -> str | None:
    """Returns the known suffix of a file name, without `.gz`, or None."""
    name = path.name.lower()
    suffix = Path(name.removesuffix(".gz")).suffix
    # Parquet compresses by itself and is read by position, so a gzipped one is not taken.
    known = suffix in READERS and not (suffix == ".parquet" and name.endswith(".gz"))
    return suffix if known else None


def _known_suffixes() -> str:
    return ", ".join(READERS)


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(values, f"{path}, row {number}")
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"the file is not readable Parquet ({error})",
            why="It is half written, damaged, or of another kind.",
            fix="Make or copy it again.",
            where=str(path),
        ) from None


READERS: dict[str, Callable[[Path], Iterator[Row | Unreadable]]] = {
    ".json": read_json,
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".parquet": _read_parquet,
}
