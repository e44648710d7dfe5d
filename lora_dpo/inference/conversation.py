"""A conversation: its turns, and what of them still fits into the model."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field

from lora_dpo.data.chat import TurnEncoder
from lora_dpo.data.pair import Message
from lora_dpo.errors import UserError

_LEAST_ROOM = 4
"""An answer gets at least a quarter of the model's positions, if it may be that long."""


@dataclass(frozen=True, slots=True)
class Question:
    """A question as the model reads it.

    Attributes:
        turns: The conversation up to the answer.
        prompt_ids: The same, as token ids.
        forgotten: How many questions at the beginning, with their answers, had to be left out.
    """

    turns: tuple[Message, ...]
    prompt_ids: list[int]
    forgotten: int


@dataclass(slots=True)
class Conversation:
    """The turns of one conversation; asking changes nothing until `add` keeps question and answer.

    Attributes:
        encoder: How turns become tokens.
        positions: How many tokens the model can read; None is any number.
        system: What stands before the first turn, or the empty text.
        turns: The questions and answers so far, without the system turn.
    """

    encoder: TurnEncoder
    positions: int | None
    system: str = ""
    turns: list[Message] = field(default_factory=list)

    def ask(self, text: str, max_new_tokens: int) -> Question:
        """Puts a question after the turns so far; where all do not fit, the oldest are left out.

        Args:
            text: The question.
            max_new_tokens: Longest answer, for which there must be room, or for a quarter of the model's positions.

        Raises:
            UserError: The question alone is too long.
        """
        question: Message = {"role": "user", "content": text}
        room = None if self.positions is None else self.positions - min(max_new_tokens, self.positions // _LEAST_ROOM)

        def without(forgotten: int) -> Question:
            turns = (*self._before(), *self.turns[2 * forgotten :], question)
            return Question(turns, self.encoder.prompt_ids(turns), forgotten)

        whole = without(0)
        if room is None or len(whole.prompt_ids) <= room:
            return whole
        # The fewer turns, the fewer tokens: so the first that fits is found by halving.
        most = len(self.turns) // 2
        first = bisect_left(range(1, most), True, key=lambda n: len(without(n).prompt_ids) <= room)
        asked = without(min(first + 1, most))
        ids = asked.prompt_ids
        if len(ids) <= room:
            return asked
        raise UserError(
            f"The question is too long: with what always stands before it, it has {len(ids)} tokens.",
            why=f"The model has {self.positions} positions, and an answer needs some of them.",
            fix="Shorten it, or the system text.",
        )

    def add(self, question: Question, answer: str) -> None:
        """Keeps a question with its answer, and forgets what was left out for it."""
        del self.turns[: 2 * question.forgotten]
        self.turns += [question.turns[-1], {"role": "assistant", "content": answer}]

    def reset(self) -> None:
        """Forgets all questions and answers; the system turn stays."""
        self.turns.clear()

    def _before(self) -> list[Message]:
        return [{"role": "system", "content": self.system}] if self.system else []
