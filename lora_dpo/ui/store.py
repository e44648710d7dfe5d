"""The store of preferences: one vote a line, appended and on the disk before the next question is shown."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args
from unicodedata import category

from lora_dpo.data.formats.collected import EDITED, UNDO, standing
from lora_dpo.data.prompts import shown_prompt
from lora_dpo.errors import UserError
from lora_dpo.inference.answers_file import check_place
from lora_dpo.ui.drafts import Answered, Draft
from lora_dpo.ui.lines import Line, LineFile

Choice = Literal["left", "right", "both_good", "both_bad", "skip"]
CHOICES: tuple[Choice, ...] = get_args(Choice)

_LONGEST_NAME = 64
_BREAKS = {"Cc", "Cs", "Zl", "Zp"}
"""Categories of characters that no name has: controls, halves of characters, ends of lines and paragraphs."""
_LONGEST_COMMENT = 4_000
_LONGEST_EDIT = 40_000
_DAY_SECONDS = 86_400.0
_HEX = set("0123456789abcdef")
_ONCE = ("annotator", "pair", "made_by")
"""Somebody votes once on what these name."""


class AlreadyVotedError(UserError):
    """Somebody has voted on the same two answers before, in another window or terminal."""

    def __init__(self) -> None:
        super().__init__(
            "You have voted on these two answers already, here or in another window.",
            why="That vote stands, and one person has one vote on two answers.",
            fix="To vote anew, take it back first: undo.",
        )


@dataclass(frozen=True, slots=True)
class Vote:
    """What a person made of a draft.

    Attributes:
        ticket: The name of the showing, which decides the order of the sides; it becomes the vote's id.
        draft: What was shown.
        choice: Which answer is better, or that none is.
        annotator: Who says so.
        seconds: How long the answers were looked at.
        edited: What the better answer was made to be, or None.
        comment: A remark, or the empty text.
        via: Where: `terminal`, `web` or `compare`.

    Raises:
        UserError: A value cannot be stored.
    """

    ticket: str
    draft: Draft
    choice: Choice
    annotator: str
    seconds: float
    edited: str | None = None
    comment: str = ""
    via: str = "terminal"

    def __post_init__(self) -> None:
        if self.choice not in CHOICES:
            raise UserError(f"'{self.choice}' is no choice.", fix=f"Known: {', '.join(CHOICES)}.")
        _check_ticket(self.ticket)
        check_annotator(self.annotator)
        if len(self.comment) > _LONGEST_COMMENT:
            raise UserError(f"The comment has {len(self.comment)} characters; at most {_LONGEST_COMMENT} are kept.")
        if self.edited is not None and self.choice not in ("left", "right"):
            raise UserError("An answer can only be edited as the better one: choose left or right.")
        if self.edited is not None and not 0 < len(self.edited.strip()) <= _LONGEST_EDIT:
            raise UserError(
                f"The edited answer has {len(self.edited.strip())} characters; it must have 1 to {_LONGEST_EDIT}."
            )

    def line(self) -> Line:
        """Returns the vote as the store keeps it."""
        left, right = self.draft.shown(self.ticket)
        better, worse = {"left": (left, right), "right": (right, left)}.get(self.choice, (None, None))
        chosen = better.text if better is not None else None
        return {
            "id": self.ticket,
            "choice": self.choice,
            "prompt": shown_prompt(self.draft.turns),
            "chosen": chosen if self.edited is None else self.edited.strip(),
            "rejected": worse.text if worse is not None else None,
            EDITED: self.edited is not None,
            "comment": self.comment.strip(),
            "annotator": self.annotator,
            "at": _now(),
            "seconds": round(min(max(self.seconds, 0.0), _DAY_SECONDS), 2),
            "left": _side(left),
            "right": _side(right),
            "question": self.draft.question,
            "pair": self.draft.id,
            "made_by": self.draft.made_by,
            "via": self.via,
        }


class Store:
    """The file of preferences, and the votes in it that stand.

    Args:
        path: A `.jsonl` file, there or not.

    Raises:
        UserError: There can be no such file, or it holds something else.
    """

    def __init__(self, path: Path) -> None:
        check_place(path)
        if path.suffix != ".jsonl":
            raise UserError(
                f"--output is {path}, but preferences are collected in a .jsonl file.",
                why="One line is added a vote, and `lora-dpo data` knows a file by its suffix.",
                fix=f"Name it {path.with_suffix('.jsonl')}.",
            )
        self.path = path
        self._file = LineFile(path)
        for number, line in enumerate(self._file.lines, start=1):
            if "choice" not in line or "annotator" not in line:
                raise UserError(
                    f"{path} holds something other than collected preferences; nothing in it was touched.",
                    why=f"Line {number} has no choice and no annotator.",
                    fix="Name another file: --output FILE.",
                )

    def add(self, vote: Vote) -> bool:
        """Adds a vote, unless it is there already: a browser that got no answer sends it again.

        Returns:
            Whether it was added.

        Raises:
            AlreadyVotedError: Another vote of this person on the same two answers stands.
        """
        line = vote.line() | ({"again": True} if self._was_undone(vote) else {})

        def is_there() -> bool:
            if any(one.get("id") == vote.ticket for one in self._file.lines):
                return True
            if any(all(one.get(key) == line[key] for key in _ONCE) for one in self._standing()):
                raise AlreadyVotedError
            return False

        return self._file.append(line, unless=is_there)

    def votes(self) -> list[Line]:
        """Returns the votes that stand, in their order: those that were undone are left out."""
        self._file.refresh()
        return self._standing()

    def undo(
        self, annotator: str, among: Callable[[Line], bool] = lambda line: True, ticket: str | None = None
    ) -> Line | None:
        """Takes back an annotator's last vote, by a line of its own.

        Args:
            annotator: Whose vote.
            among: Which votes count.
            ticket: The id of the line: a browser that got no answer sends the same one again, which takes back no
                second vote. None is a new one.

        Returns:
            The vote that no longer stands, or None where there was none.

        Raises:
            UserError: This is no ticket.
        """
        ticket = new_ticket() if ticket is None else ticket
        _check_ticket(ticket)
        last = next((v for v in reversed(self.votes()) if v["annotator"] == annotator and among(v)), None)
        if last is not None:
            line = {"id": ticket, "choice": UNDO, "undoes": last["id"], "annotator": annotator, "at": _now()}

            def is_done() -> bool:
                is_known = any(one.get("id") == ticket for one in self._file.lines)
                return is_known or all(vote["id"] != last["id"] for vote in self._standing())

            if self._file.append(line, unless=is_done):
                return last
        return self._undone_by(ticket)

    def _was_undone(self, vote: Vote) -> bool:
        """Returns whether this person has taken back a vote on these answers, and so may know who wrote them."""
        self._file.refresh()
        undone = {line.get("undoes") for line in self._file.lines if line["choice"] == UNDO}
        return any(
            line.get("id") in undone and (line["annotator"], line.get("pair")) == (vote.annotator, vote.draft.id)
            for line in self._file.lines
        )

    def _undone_by(self, ticket: str) -> Line | None:
        """Returns the vote that a line took back."""
        lines = {line["id"]: line for line in self._file.lines if "id" in line}
        return lines.get(lines.get(ticket, {}).get("undoes"))

    def _standing(self) -> list[Line]:
        return standing(self._file.lines, lambda line: line)


def new_ticket() -> str:
    """Returns a name that no other showing has."""
    return secrets.token_hex(16)


def _check_ticket(ticket: str) -> None:
    if len(ticket) != 32 or not set(ticket) <= _HEX:
        raise UserError("The ticket is none of lora-dpo's.", fix="Load the page again.")


def check_annotator(name: str) -> None:
    """Checks the name of somebody who votes.

    Raises:
        UserError: It is empty, too long or holds what cannot be shown on a line.
    """
    if not name.strip() or len(name) > _LONGEST_NAME or not _BREAKS.isdisjoint(map(category, name)):
        raise UserError(
            f"The annotator's name is {name[: _LONGEST_NAME + 1]!r}.",
            why=f"It must be a text of 1 to {_LONGEST_NAME} characters on one line.",
            fix="Give another, on the page or by --annotator NAME.",
        )


def _side(answered: Answered) -> dict[str, Any]:
    return {
        "text": answered.text,
        "tokens": answered.tokens,
        "ended": answered.ended,
        "seed": answered.seed,
        "author": dict(answered.author),
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
