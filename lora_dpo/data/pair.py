"""`Pair`: one preference, the unit in which all data travels; and what it has in common with an example."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from dataclasses import dataclass, field
from typing import Protocol, TypedDict


class Message(TypedDict):
    """One turn of a conversation; `role` is `system`, `user` or `assistant`."""

    role: str
    content: str


class Asked(Protocol):
    """What is divided by question: a pair, or an example of the SFT stage."""

    @property
    def prompt(self) -> tuple[Message, ...]:
        """The conversation up to the answer."""

    @property
    def group(self) -> str:
        """Identifies the question."""

    @property
    def source(self) -> int:
        """Which of the recipe's sources it came from."""


@dataclass(frozen=True, slots=True)
class Pair:
    """One preference: after `prompt`, `chosen` is better than `rejected`.

    Args:
        prompt: The conversation up to the answer; its last turn is the user's.
        chosen: Text of the better answer, without any template.
        rejected: Text of the worse answer.
        group: Identifies the question. Pairs of one group never land on two sides of a split.
        origin: Where the pair was read, such as `data.csv, line 40`.
        source: Which of the recipe's sources it came from, counted from 0.
    """

    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    group: str
    origin: str = field(default="", compare=False)
    source: int = field(default=0, compare=False)


def user(text: str) -> tuple[Message, ...]:
    """Returns the one-turn prompt in which a user says `text`."""
    return ({"role": "user", "content": text},)


def normalised(text: str) -> str:
    """Returns `text` without the differences that do not make another question.

    Unicode form (NFKC), letter case, white space and punctuation at the ends are levelled.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    return re.sub(r"\s+", " ", folded).strip(" .,;:!?\"'")


def prompt_text(prompt: tuple[Message, ...]) -> str:
    """Returns the prompt's turns as one text, one `role: content` paragraph a turn."""
    return "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in prompt)


def group_of(prompt: tuple[Message, ...]) -> str:
    """Returns the group id of a prompt: a hash of its normalised turns (16 hex digits).

    A system turn does not make another question, so it is left out.
    """
    turns = [[turn["role"], normalised(turn["content"])] for turn in prompt if turn["role"] != "system"]
    return hashlib.sha256(json.dumps(turns, ensure_ascii=False).encode()).hexdigest()[:16]
