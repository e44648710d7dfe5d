"""The two sides that write the answers: one model twice, or two models."""

from __future__ import annotations

import dataclasses
import hashlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lora_dpo.data.pair import Message
from lora_dpo.errors import UserError
from lora_dpo.inference.chat_model import ChatModel
from lora_dpo.inference.conversation import Conversation
from lora_dpo.inference.sampling import Sampling
from lora_dpo.inference.streaming import Writing
from lora_dpo.model.answering import Answer
from lora_dpo.model.base import resolve
from lora_dpo.model.hashes import weights_hash
from lora_dpo.ui.drafts import Answered, digest

_SHOWN_HASH = 16


@dataclass(frozen=True, slots=True)
class Side:
    """What writes one of two answers.

    Attributes:
        model: The model.
        sampling: How it writes; its seed is that of the whole collection.
        base: Whether the model before the training answers.
    """

    model: ChatModel
    sampling: Sampling
    base: bool = False
    _known: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def author(self) -> dict[str, Any]:
        """Returns what writes, as the store keeps it: names, hashes of the weights, and options."""
        if not self._known:
            found = self.model.found
            section = found.base if self.base and not found.is_adapter and found.base is not None else found.model
            adapter = found.place if found.is_adapter and not self.base else None
            self._known.update(
                {
                    "name": str(self.model.base_name if self.base else found.name),
                    "model": section.name,
                    "weights_sha256": _short(weights_hash(resolve(section), section.revision)),
                    "adapter": adapter,
                    "adapter_sha256": _short(weights_hash(adapter, None)) if adapter is not None else None,
                    "four_bit": found.four_bit,
                    "sampling": {k: v for k, v in dataclasses.asdict(self.sampling).items() if k != "seed"},
                }
            )
        return self._known

    @property
    def identity(self) -> str:
        """What tells this side's weights from others', whatever the options and places."""
        author = self.author()
        keys = ("weights_sha256", "adapter_sha256") if author["weights_sha256"] else ("model", "adapter_sha256")
        return digest([author[key] for key in keys])

    def begin(self, turns: Sequence[Message], seed: int) -> Writing:
        """Begins to write an answer.

        Args:
            turns: The conversation up to it.
            seed: Of the draw.

        Raises:
            UserError: The conversation is too long.
        """
        prompt = self._prompt(turns)
        sampling = dataclasses.replace(self.sampling, seed=seed)
        return self.model.write(prompt, sampling, base=self.base)

    def answered(self, writing: Writing, seed: int) -> Answered:
        """Returns an answer whose writing has ended, with what wrote it.

        Args:
            writing: The writing.
            seed: What it was begun with.
        """
        assert writing.answer is not None  # the iteration has ended
        return self._kept(writing.answer, seed)

    def answers(self, turns: Sequence[Message], seeds: Sequence[int], stop: threading.Event) -> list[Answered] | None:
        """Returns several answers to one question, written together; None where it was stopped.

        Args:
            turns: The conversation up to them.
            seeds: Of each draw.
            stop: Is set where they are no longer wanted.

        Raises:
            UserError: The conversation is too long.
        """
        prompts = [self._prompt(turns)] * len(seeds)
        found = self.model.answers(prompts, self.sampling, base=self.base, seeds=seeds, stop=stop)
        if stop.is_set():
            return None
        return [self._kept(answer, seed) for answer, seed in zip(found, seeds, strict=True)]

    def _kept(self, answer: Answer, seed: int) -> Answered:
        drawn = seed if self.sampling.temperature > 0 else None
        return Answered(answer["text"], len(answer["ids"]), answer["ended"], drawn, self.author())

    def _prompt(self, turns: Sequence[Message]) -> list[int]:
        *before, question = turns
        system = before[0]["content"] if before and before[0]["role"] == "system" else ""
        earlier = [turn for turn in before if turn["role"] != "system"]
        conversation = Conversation(self.model.encoder, self.model.positions, system, earlier)
        return conversation.ask(question["content"], self.sampling.max_new_tokens).prompt_ids


def made_by(sides: Sequence[Side]) -> str:
    """Returns what tells the drafts of these sides from others': which weights wrote them."""
    return digest(sorted(side.identity for side in sides))


def check_can_differ(sides: Sequence[Side]) -> None:
    """Checks that two sides can write different answers.

    Raises:
        UserError: They would write the same one each time.
    """
    one, other = sides
    if one.sampling.temperature == 0 and other.sampling.temperature == 0 and one.identity == other.identity:
        raise UserError(
            "Both answers would be the same: the model is the same on both sides, and temperature is 0.",
            fix="Raise it, as in --temperature 0.8, or name another model: --other-model or --other-adapter.",
        )


def seed_for(seed: int, question: str, side: int, attempt: int) -> int:
    """Returns the seed of one answer, the same whenever it is written.

    Args:
        seed: Of the collection.
        question: The question's id.
        side: 0 or 1.
        attempt: How often the answers were too alike before.
    """
    text = f"{seed}:{question}:{side}:{attempt}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def _short(value: str | None) -> str | None:
    return None if value is None else value[:_SHOWN_HASH]
