"""The one exception that a user's mistake may raise, and the words that help to mend it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake that the user can mend; shown without a traceback, exit code 2.

    The message answers three questions in order: what was wrong (the value, and where it stands),
    why that cannot work, and what to do about it.

    Args:
        what: What was wrong, with the offending value.
        why: Why it cannot work. Left out where `what` says it already.
        fix: What to do: a command, a key or the values that would be taken.
        where: The place of the mistake, such as `recipe.yaml:12` or `data.csv, line 40`.
    """

    exit_code = 2

    def __init__(self, what: str, *, why: str = "", fix: str = "", where: str = "") -> None:
        self.what, self.why, self.fix, self.where = what, why, fix, where
        super().__init__(str(self))

    def __str__(self) -> str:
        head = f"{self.where}: {self.what}" if self.where else self.what
        return "\n".join(part for part in (head, self.why, self.fix) if part)


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Returns the known name that is spelt most like `name`, or None if none is close."""
    by_folded = {candidate.casefold(): candidate for candidate in known}
    matches = difflib.get_close_matches(str(name).casefold(), by_folded, n=1, cutoff=0.6)
    return by_folded[matches[0]] if matches else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns one sentence that leads from a misspelt name to a known one.

    Args:
        name: What the user wrote.
        known: The names that exist.

    Returns:
        `Did you mean 'beta'?` where one name is near, otherwise the list of names.
    """
    names = list(known)
    match = nearest(name, names)
    if match is not None:
        return f"Did you mean '{match}'?"
    return f"Known: {', '.join(names)}." if names else ""
