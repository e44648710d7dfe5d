"""Finds and reads the sources of a recipe: bundled data, files, folders and Hub data sets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lora_dpo.data.convert import convert_rows, format_of, pair_format
from lora_dpo.data.files import data_files, read_rows
from lora_dpo.data.formats.base import Format
from lora_dpo.data.hub import hub_rows
from lora_dpo.data.pair import Pair
from lora_dpo.data.progress import counted
from lora_dpo.data.question import Question
from lora_dpo.data.report import OnBadRow, ReadReport
from lora_dpo.data.row import Row
from lora_dpo.errors import UserError, did_you_mean, nearest
from lora_dpo.recipe.schema import DataSection, Source

_BUNDLED = "bundled/"
_BUNDLED_FOLDER = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class LoadedPairs:
    """All pairs and questions of a recipe, as they were read: neither linted nor divided.

    Args:
        by_source: The pairs of each source, in the recipe's order.
        questions: The questions of all sources that list their answers, in the recipe's order.
        report: What was read and left out, over all sources.
        formats: The names of the formats met in each source.
    """

    by_source: list[list[Pair]] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)
    report: ReadReport = field(default_factory=ReadReport)
    formats: list[list[str]] = field(default_factory=list)


def load_pairs(data: DataSection) -> LoadedPairs:
    """Reads all sources of a recipe.

    Args:
        data: The recipe's data section.

    Raises:
        UserError: A source does not exist, cannot be read, is of no known format, or holds no pair.
    """
    loaded = LoadedPairs()
    scored = False
    for number, source in enumerate(data.sources()):
        report = ReadReport()
        pairs, questions, formats = _load_source(source, number, data, report)
        if not pairs:
            raise _no_pairs(source, data, report, formats)
        loaded.by_source.append(pairs)
        loaded.questions.extend(questions)
        loaded.formats.append([known.name for known in formats])
        loaded.report.add(report)
        scored |= any(known.scores for known in formats)
    if data.min_margin > 0 and not scored:
        raise UserError(
            f"data.min_margin is {data.min_margin}, but no source has scores",
            why="A margin is a difference of scores, such as score_chosen - score_rejected.",
            fix="Set data.min_margin=0, or use data with scores.",
        )
    return loaded


def _load_source(
    source: Source, number: int, data: DataSection, report: ReadReport
) -> tuple[list[Pair], list[Question], list[Format]]:
    pairs: list[Pair] = []
    questions: list[Question] = []
    formats: dict[str, Format] = {}
    for where, rows in streams(source, data.on_bad_row, report, key="data.path"):
        known, rows = format_of(counted(rows, f"Reading {where}"), pair_format(data), report, where)
        formats[known.name] = known
        for made, question in convert_rows(known.standing(rows), known, data, report, number):
            pairs += made
            questions += [] if question is None else [question]
    return pairs, questions, list(formats.values())


class NotThereError(UserError):
    """A source that is neither there nor can be a Hub id."""


def streams(
    source: Source, on_bad_row: OnBadRow, report: ReadReport, *, key: str
) -> Iterator[tuple[str, Iterable[Row]]]:
    """Yields the files of a source, each with its rows.

    Args:
        source: The source.
        on_bad_row: Whether a row that cannot be read stops the reading.
        report: Where rows and bad rows are counted.
        key: The recipe's key that names the source, for errors.

    Raises:
        NotThereError: It is neither there, nor can it be a Hub id.
        UserError: It cannot be read.
    """
    path = _local_path(source, key)
    if path is None:
        yield source.path, _counted_in(report, hub_rows(source.path, source.subset, source.hub_split, key=key))
    elif path.is_dir() and (source.subset or source.hub_split):
        yield str(path), _counted_in(report, hub_rows(str(path), source.subset, source.hub_split, key=key))
    else:
        for file in data_files(path):
            yield str(file), read_rows(file, on_bad_row, report)


def _counted_in(report: ReadReport, rows: Iterable[Row]) -> Iterator[Row]:
    for row in rows:
        report.rows += 1
        yield row


def _local_path(source: Source, key: str) -> Path | None:
    """Returns the file or folder that a source names, or None for a Hub id."""
    if source.path.startswith(_BUNDLED):
        return _bundled(source.path, key)
    path = Path(source.path).expanduser()
    if path.exists():
        return path
    has_suffix = path.suffix[1:].isalpha()
    if (
        source.path.startswith(("/", ".", "~"))
        or has_suffix
        or source.path.count("/") != 1
        or source.path.endswith("/")
    ):
        raise _missing(path, key)
    return None


def _bundled(name: str, key: str) -> Path:
    path = _BUNDLED_FOLDER / f"{name.removeprefix(_BUNDLED)}.csv"
    if path.parent == _BUNDLED_FOLDER and path.is_file():
        return path
    known = [f"{_BUNDLED}{file.stem}" for file in sorted(_BUNDLED_FOLDER.glob("*.csv"))]
    raise UserError(f"'{name}' is no data that comes with lora-dpo", fix=did_you_mean(name, known), where=key)


def _missing(path: Path, key: str) -> NotThereError:
    folder = path.parent
    if not folder.is_dir():
        what, fix = f"there is no folder '{folder}', so no '{path.name}' in it", ""
    else:
        what = f"there is no file or folder '{path}'"
        near = nearest(path.name, sorted(entry.name for entry in folder.iterdir()))
        fix = f"Did you mean '{folder / near}'? " if near else ""
    fix += f"Relative paths start in the working directory, {Path.cwd()}; Hub ids look like owner/name."
    return NotThereError(what, fix=fix, where=key)


def _no_pairs(source: Source, data: DataSection, report: ReadReport, formats: Iterable[Format]) -> UserError:
    why = f"Read as {', '.join(known.name for known in formats)}: {report.rows} rows, {report.bad_rows} of them bad, "
    why += f"{report.rows_without_pair} without a preference."
    if report.reasons:
        why += "\nThe first reasons:\n" + "\n".join(f"  {reason}" for reason in report.reasons)
    fix = "Check the file's columns."
    if data.min_margin > 0:
        fix += f" Lower data.min_margin (now {data.min_margin})."
    return UserError("the source holds no usable pair", why=why, fix=fix, where=source.path)
