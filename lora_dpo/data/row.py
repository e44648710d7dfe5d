"""`Row`: one record as it was read, before it becomes pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Row:
    """One record of a file or data set.

    Args:
        values: The record's columns.
        where: File and line (or row) it was read from.
    """

    values: dict[str, Any]
    where: str


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A record that could not be read, while those after it can.

    Args:
        reason: Why not.
        where: File and line (or row).
    """

    reason: str
    where: str
