"""The known formats, and how the one of a file is found."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from lora_dpo.data.formats.base import BadRowError, Candidate, Format, Options, Values
from lora_dpo.data.formats.collected import COLLECTED
from lora_dpo.data.formats.multiple_choice import MULTIPLE_CHOICE
from lora_dpo.data.formats.pairwise import ALPACA, ORCA, PLAIN, SHAREGPT, ULTRAFEEDBACK, convert_plain
from lora_dpo.data.formats.scored import SCORED
from lora_dpo.data.formats.transcripts import HH_RLHF, PROMPTED_TRANSCRIPTS
from lora_dpo.data.formats.truthfulqa import TRUTHFULQA_CSV, TRUTHFULQA_HUB
from lora_dpo.errors import UserError, did_you_mean, nearest
from lora_dpo.recipe.schema import Columns

FORMATS: tuple[Format, ...] = (
    # Special before general: the first that recognises the columns is taken.
    COLLECTED,
    TRUTHFULQA_CSV,
    TRUTHFULQA_HUB,
    MULTIPLE_CHOICE,
    SCORED,
    SHAREGPT,
    ALPACA,
    ORCA,
    ULTRAFEEDBACK,
    PROMPTED_TRANSCRIPTS,
    PLAIN,
    HH_RLHF,
)


def recognise(rows: Sequence[Values], where: str) -> Format:
    """Returns the format of a file.

    Args:
        rows: The file's first rows. A column counts if any of them has it, so that one bad row decides nothing.
        where: The file, for the error.

    Raises:
        UserError: No format has these columns.
    """
    columns = columns_of(rows)
    for known in FORMATS:
        if known.recognises(set(columns), rows):
            return known
    listed = "\n".join(f"  {known.name}: {known.columns}" for known in FORMATS)
    raise UserError(
        f"the columns {', '.join(columns) or '(none)'} are no known preference format{_maybe_misspelt(columns)}",
        why=f"Known formats and their columns:\n{listed}",
        fix="Say which column is what in the recipe: data.columns: {prompt: ..., chosen: ..., rejected: ...}",
        where=where,
    )


def mapped(mapping: Columns, rows: Sequence[Values], where: str) -> Format:
    """Returns the format that the recipe's `data.columns` describes.

    Args:
        mapping: Which column is what.
        rows: The file's first rows.
        where: The file, for the error.

    Raises:
        UserError: A column that the mapping names is not there.
    """
    columns = columns_of(rows)
    names = mapping.model_dump(exclude_none=True)
    for key, column in names.items():
        if column not in columns:
            raise UserError(
                f"data.columns.{key} is '{column}', but there is no such column",
                fix=did_you_mean(column, columns),
                where=where,
            )

    def convert(row: Values, options: Options) -> list[Candidate]:
        try:
            return convert_plain({key: row.get(column) for key, column in names.items()}, options)
        except BadRowError as bad:
            raise BadRowError(
                f"{bad} (data.columns: {', '.join(f'{key}={column}' for key, column in names.items())})"
            ) from None

    return dataclasses.replace(PLAIN, name="data.columns", convert=convert)


def columns_of(rows: Sequence[Values]) -> list[str]:
    """Returns the columns that any of the rows has, in their order."""
    return list(dict.fromkeys(column for row in rows for column in row))


def _maybe_misspelt(columns: list[str]) -> str:
    """Returns a remark on a column that is nearly called prompt, chosen or rejected."""
    for wanted in ("prompt", "chosen", "rejected"):
        near = nearest(wanted, columns)
        if wanted not in columns and near is not None:
            return f" (is '{near}' meant to be '{wanted}'?)"
    return ""
