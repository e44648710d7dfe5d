"""What every format is made of: options, candidate pairs, and checked access to a row's values."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lora_dpo.data.pair import Message, user
from lora_dpo.data.row import Row
from lora_dpo.recipe.schema import SamplePairs

Values = Mapping[str, Any]
_ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
}


class BadRowError(Exception):
    """A row that its format cannot convert; the message is the reason, shown to the user."""


@dataclass(frozen=True, slots=True)
class Options:
    """The recipe's keys that decide which pairs a row makes.

    Args:
        pairs: `best`, `all` or a number of pairs to draw, for questions with several answers.
        min_margin: Smallest difference of scores that makes a pair, where answers are scored.
        seed: Decides which pairs are drawn.
    """

    pairs: Literal["best", "all"] | SamplePairs = "best"
    min_margin: float = 0.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Candidate:
    """One preference of a row, before it is checked and gets its place and group.

    Args:
        prompt: The conversation up to the answer.
        chosen: The better answer.
        rejected: The worse answer.
        group: The row's own name of the question, if it has one.
    """

    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    group: str | None = None


@dataclass(frozen=True, slots=True)
class AnswerSet:
    """All answers to a row's question, as the row lists them.

    Args:
        prompt: The conversation up to the answer.
        correct: The correct answers.
        incorrect: The incorrect answers.
        best: The correct answer that the row calls the best, or the empty text.
        best_incorrect: The incorrect answer that the row sets against it, or the empty text.
        category: The row's category, or the empty text.
    """

    prompt: tuple[Message, ...]
    correct: Sequence[str]
    incorrect: Sequence[str]
    best: str = ""
    best_incorrect: str = ""
    category: str = ""


@dataclass(frozen=True, slots=True)
class Format:
    """One kind of preference data.

    Args:
        name: What it is called in messages and reports.
        columns: Its columns in one line, for the list that is shown when nothing matches.
        recognises: Tells from the columns and the first rows whether a file is of this kind.
        convert: Makes the pairs of one row; raises `BadRowError`.
        scores: Columns of which at least one must be there for `min_margin` to mean something.
        answers: Reads all answers of one row, where this kind lists them; raises `BadRowError`.
        standing: Leaves out the rows that later ones of the same file take back.
    """

    name: str
    columns: str
    recognises: Callable[[set[str], Sequence[Values]], bool]
    convert: Callable[[Values, Options], list[Candidate]]
    scores: frozenset[str] = frozenset()
    answers: Callable[[Values], AnswerSet] | None = None
    standing: Callable[[Iterable[Row]], Iterable[Row]] = iter


def value_of(row: Values, column: str) -> Any:
    """Returns a row's value, which must be there.

    Raises:
        BadRowError: The column is missing or null.
    """
    if row.get(column) is None:
        raise BadRowError(f"column '{column}' {'is null' if column in row else 'is missing'}")
    return row[column]


def checked_text(value: Any, name: str) -> str:
    """Returns `value` unchanged if it is text that can be stored.

    Raises:
        BadRowError: It is no text, or holds half a character.
    """
    if not isinstance(value, str):
        raise BadRowError(f"{name} is {shown(value)}, not text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        # JSON can write such a half (\ud83d) alone; UTF-8, and so every tokenizer, cannot.
        half = ord(value[error.start])
        raise BadRowError(f"{name} holds half a character (the lone surrogate \\u{half:04x})") from None
    return value


def text_of(row: Values, column: str) -> str:
    """Returns a row's text, exactly as it stands.

    Raises:
        BadRowError: The column is missing, null, or no text.
    """
    return checked_text(value_of(row, column), f"column '{column}'")


def optional_text(row: Values, column: str) -> str:
    """Returns a row's text, or the empty text where the column is missing or null."""
    return "" if row.get(column) is None else text_of(row, column)


def texts_of(row: Values, column: str) -> list[str]:
    """Returns a row's list of texts.

    Raises:
        BadRowError: The column is missing, null, or no list of texts.
    """
    values = value_of(row, column)
    if not isinstance(values, list):
        raise BadRowError(f"column '{column}' is {shown(values)}, not a list of texts")
    return [checked_text(value, f"column '{column}', item {number}") for number, value in enumerate(values, start=1)]


def messages(value: Any, name: str) -> tuple[Message, ...]:
    """Reads a list of turns, with the keys `role` and `content` or ShareGPT's `from` and `value`.

    Raises:
        BadRowError: A turn has another shape, or a role other than system, user and assistant.
    """
    if not isinstance(value, list):
        raise BadRowError(f"{name} is {shown(value)}, not a list of messages")
    return tuple(message(turn, f"{name}, message {number}") for number, turn in enumerate(value, start=1))


def message(turn: Any, name: str) -> Message:
    """Reads one turn; see `messages`."""
    if not isinstance(turn, Mapping):
        raise BadRowError(f"{name} is {shown(turn)}, not an object with role and content")
    role_key, content_key = ("from", "value") if "from" in turn and "role" not in turn else ("role", "content")
    role = turn.get(role_key)
    if role not in _ROLES:
        raise BadRowError(f"{name} has the {role_key} {shown(role)}; known are {', '.join(_ROLES)}")
    return {"role": _ROLES[role], "content": checked_text(turn.get(content_key), f"{name}, key '{content_key}'")}


def with_system(prompt: tuple[Message, ...], system: str) -> tuple[Message, ...]:
    """Returns the prompt with a system turn in front, unless it is blank or the prompt has one already."""
    if not system.strip() or (prompt and prompt[0]["role"] == "system"):
        return prompt
    return ({"role": "system", "content": system}, *prompt)


def prompt_of(value: Any, name: str) -> tuple[Message, ...]:
    """Reads a prompt that is a text (one user turn) or a list of messages."""
    if isinstance(value, str):
        return user(checked_text(value, name))
    return messages(value, name)


def stable_hash(*parts: object) -> str:
    """Returns a hash of the parts that is the same on every machine and in every process."""
    return hashlib.sha256("\x1f".join(map(str, parts)).encode()).hexdigest()


def select(candidates: list[Candidate], options: Options, question: str) -> list[Candidate]:
    """Returns the candidates that `options.pairs` asks for, in their order.

    A draw depends on the seed, the question and the answers' texts only, never on the order of rows.

    Args:
        candidates: All pairs of one question.
        options: `best` must have been dealt with before: it is not the same for every format.
        question: What the draw is seeded with.
    """
    if not isinstance(options.pairs, SamplePairs):
        return candidates
    drawn = sorted(candidates, key=lambda c: stable_hash(options.seed, question, c.chosen, c.rejected))
    kept = {id(candidate) for candidate in drawn[: options.pairs.sample]}
    return [candidate for candidate in candidates if id(candidate) in kept]


def shown(value: Any) -> str:
    """Returns a value as an error shows it, cut to 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
