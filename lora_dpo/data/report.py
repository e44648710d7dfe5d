"""`ReadReport`: what reading left out, and why."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from lora_dpo.errors import UserError

OnBadRow = Literal["error", "skip"]
_REASONS_KEPT = 5


@dataclass
class ReadReport:
    """Counts what reading met, over all files of a run.

    Args:
        rows: Rows read, bad ones included.
        rows_without_pair: Readable rows that hold no preference, such as ties and skipped questions, or no answer.
        bad_rows: Rows that could not be read and were skipped.
        reasons: Place and reason of the first few bad rows.
        remedy: What the user can do about a bad row.
    """

    rows: int = 0
    rows_without_pair: int = 0
    bad_rows: int = 0
    reasons: list[str] = field(default_factory=list)
    remedy: str = "Mend this row, or set data.on_bad_row: skip to leave such rows out (they are counted)."

    def bad_row(self, reason: str, where: str, on_bad_row: OnBadRow) -> None:
        """Counts a row that cannot be read, or stops because of it.

        Args:
            reason: Why the row cannot be read.
            where: File and line of the row.
            on_bad_row: The recipe's `data.on_bad_row`.

        Raises:
            UserError: `on_bad_row` is `error`.
        """
        if on_bad_row == "error":
            raise UserError(reason, fix=self.remedy, where=where)
        self.bad_rows += 1
        if len(self.reasons) < _REASONS_KEPT:
            self.reasons.append(f"{where}: {reason}")

    def add(self, other: ReadReport) -> None:
        """Adds what another report counted."""
        self.rows += other.rows
        self.rows_without_pair += other.rows_without_pair
        self.bad_rows += other.bad_rows
        self.reasons = (self.reasons + other.reasons)[:_REASONS_KEPT]
