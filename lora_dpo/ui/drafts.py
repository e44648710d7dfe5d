"""Two answers to one question: what a person is shown, and what is known of where they are from."""

from __future__ import annotations

import difflib
import hashlib
import hmac
import json
import re
import secrets
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lora_dpo.data.pair import Message, normalised
from lora_dpo.errors import UserError
from lora_dpo.ui.lines import LineFile

ALIKE = 0.9
"""Two answers whose `likeness` is this or more are too alike to be compared."""
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3000-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
"""Scripts that are written without spaces: Thai, Lao, Burmese, Khmer, Japanese, Chinese."""
_WORD = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer, and what wrote it.

    Attributes:
        text: The answer.
        tokens: How many tokens it has.
        ended: Whether it came to its own end, and was not cut.
        seed: Of the draw; None where the most likely tokens were taken.
        author: What wrote it, such as `Author.known` says it.
    """

    text: str
    tokens: int
    ended: bool
    seed: int | None
    author: Mapping[str, Any]

    @property
    def by(self) -> str:
        """What wrote it, for people."""
        return str(self.author.get("name", "unknown"))


@dataclass(frozen=True, slots=True)
class Draft:
    """Two different answers to a question.

    Attributes:
        turns: The conversation up to the answers.
        answers: The answers, in the order of the sides that wrote them.
        made_by: Which pair of sides wrote them.
        question: Identifies the question.
        id: Identifies question and answers, whatever their order.
        secret: Makes sides of tickets; it stays in the file of the drafts, also when a browser knows the ticket.
    """

    turns: tuple[Message, ...]
    answers: tuple[Answered, Answered]
    made_by: str
    secret: str = field(default_factory=secrets.token_hex, compare=False, repr=False)
    question: str = field(init=False)
    id: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "question", question_id(self.turns))
        object.__setattr__(self, "id", digest([self.turns, sorted(one.text for one in self.answers)]))

    def shown(self, ticket: str) -> tuple[Answered, Answered]:
        """Returns the answers as they are shown, left and right: in an order that ticket and secret decide.

        Args:
            ticket: The name of this showing, which is random.
        """
        one, other = self.answers
        first_is_left = hmac.digest(self.secret.encode(), ticket.encode(), "sha256")[0] % 2 == 0
        return (one, other) if first_is_left else (other, one)


class DraftFile:
    """Drafts that wait to be judged, in a file beside the preferences: a second start need not write them again.

    Args:
        preferences: The file of the preferences.

    Raises:
        UserError: The file cannot be used.
    """

    def __init__(self, preferences: Path) -> None:
        self._file = LineFile(preferences.with_name(f".{preferences.name}.drafts"))
        self._drafts: dict[tuple[str, str], Draft] = {}
        self._taken = 0
        self._guard = threading.RLock()
        self._refresh()

    def add(self, draft: Draft) -> None:
        """Adds a draft."""
        with self._guard:  # taken before the file's own, as in `all`
            self._file.append(asdict(draft), unless=lambda: (draft.made_by, draft.id) in self._refresh())

    def all(self, made_by: str) -> dict[str, Draft]:
        """Returns all drafts by their ids, those of other processes included.

        Args:
            made_by: Whose draft is returned where several pairs of sides have written the same answers.
        """
        found: dict[str, Draft] = {}
        with self._guard:
            for draft in self._refresh().values():
                if draft.id not in found or draft.made_by == made_by:
                    found[draft.id] = draft
        return found

    def _refresh(self) -> dict[tuple[str, str], Draft]:
        with self._guard:
            self._file.refresh()
            if len(self._file.lines) < self._taken:  # the file was replaced
                self._drafts, self._taken = {}, 0
            self._take(self._file.lines[self._taken :])
            return self._drafts

    def _take(self, lines: Sequence[Mapping[str, Any]]) -> None:
        for line in lines:
            try:
                one, other = (Answered(**answer) for answer in line["answers"])
                draft = Draft(tuple(line["turns"]), (one, other), line["made_by"], line.get("secret", ""))
            except (KeyError, TypeError, ValueError):
                raise UserError(
                    f"{self._file.path} is not the file of drafts that lora-dpo writes.",
                    fix="Remove it: the drafts in it are written again.",
                ) from None
            self._drafts[draft.made_by, draft.id] = draft
        self._taken += len(lines)


def question_id(turns: Sequence[Message]) -> str:
    """Returns what identifies a question: a hash of its turns (16 hex digits)."""
    return digest([[turn["role"], turn["content"]] for turn in turns])


def digest(value: Any) -> str:
    """Returns a hash of a JSON value, of 16 hex digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def likeness(one: str, other: str) -> float:
    """Returns which part of two texts' words is the same, in the same order; case and white space do not count.

    In scripts that are written without spaces, a character counts as a word.
    """
    first, second = _WORD.findall(normalised(one)), _WORD.findall(normalised(other))
    if first == second:
        return 1.0
    return difflib.SequenceMatcher(None, first, second, autojunk=False).ratio()
