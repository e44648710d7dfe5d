"""How the next token is chosen: what can be set, and what it makes of a model's scores."""

from __future__ import annotations

import dataclasses
import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from lora_dpo.errors import UserError, did_you_mean
from lora_dpo.model.answering import Noise, Prompts

_SEEDS = 2**32


@dataclass(frozen=True, slots=True)
class Sampling:
    """How an answer is written.

    Attributes:
        max_new_tokens: Longest answer, in tokens.
        temperature: Scores are divided by it before a token is drawn; 0 always takes the most likely one.
        top_p: Only the most likely tokens that together have this probability are drawn from; 1 is all.
        top_k: Only this many of the most likely tokens are drawn from; 0 is all.
        repetition_penalty: Scores of tokens that stand in the prompt or the answer already are divided by it
            (multiplied where they are negative); 1 is off. Keskar et al., CTRL (2019), section 4.1.
        seed: The same seed and prompt give the same answer; None draws a seed for each answer.

    Raises:
        UserError: A value is out of range.
    """

    max_new_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        _check(self.max_new_tokens >= 1, "max_new_tokens", self.max_new_tokens, "a number from 1")
        _check(0 <= self.temperature < math.inf, "temperature", self.temperature, "a number from 0 (0: most likely)")
        _check(0 < self.top_p <= 1, "top_p", self.top_p, "above 0 and at most 1 (1: off)")
        _check(self.top_k >= 0, "top_k", self.top_k, "a number from 0 (0: off)")
        _check(
            0 < self.repetition_penalty < math.inf, "repetition_penalty", self.repetition_penalty, "above 0 (1: off)"
        )

    def with_word(self, word: str) -> Sampling:
        """Returns these options with one of them set.

        Args:
            word: Such as `temperature=0.7`; `seed=none` draws seeds again.

        Raises:
            UserError: It is no such word, there is no such option, or the value is none for it.
        """
        name, equals, text = (part.strip() for part in word.partition("="))
        known = [field.name for field in dataclasses.fields(self)]
        if not equals:
            raise UserError(f"'{word}' is not NAME=VALUE.", fix=f"What can be set: {', '.join(known)}.")
        name = name.replace("-", "_")
        if name not in known:
            raise UserError(f"There is no option '{name}'.", fix=did_you_mean(name, known))
        if name == "seed" and text.lower() in ("none", "null"):
            return dataclasses.replace(self, seed=None)
        whole = name in ("max_new_tokens", "top_k", "seed")
        try:
            value = int(text) if whole else float(text)
        except ValueError:
            raise UserError(f"{name} is '{text}', which is no {'whole ' * whole}number.") from None
        return dataclasses.replace(self, **{name: value})

    def seeded(self) -> Sampling:
        """Returns these options with a seed, so that the same answer can be written again."""
        return self if self.seed is not None else dataclasses.replace(self, seed=secrets.randbelow(_SEEDS))

    def processors(self, prompts: Prompts, seeds: Sequence[int] | None = None) -> list[LogitsProcessor]:
        """Returns what changes the scores of next tokens.

        Args:
            prompts: The batch's prompts, as token ids.
            seeds: A seed for each prompt, instead of the one of these options.
        """
        made: list[LogitsProcessor] = []
        if self.repetition_penalty != 1:
            made.append(_Repetition(float(self.repetition_penalty), prompts))
        if self.temperature == 0:
            return made
        made.append(TemperatureLogitsWarper(float(self.temperature)))
        if self.top_k > 0:
            made.append(TopKLogitsWarper(self.top_k))
        if self.top_p < 1:
            made.append(TopPLogitsWarper(float(self.top_p)))
        return [*made, Noise(self.seeded().seed if seeds is None else seeds, prompts)]


class _Repetition(RepetitionPenaltyLogitsProcessor):
    """Leaves out the padding in front of a prompt, whose token may be the one that ends a turn.

    Args:
        penalty: The penalty.
        prompts: The batch's prompts, as token ids.
    """

    def __init__(self, penalty: float, prompts: Prompts) -> None:
        super().__init__(penalty)
        self._width = max(map(len, prompts))
        self._padding = torch.tensor([self._width - len(prompt) for prompt in prompts])

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        is_padding = places < self._padding.to(input_ids.device)[:, None]
        last_of_prompt = input_ids[:, [self._width - 1]]  # is penalised anyway, and once
        return super().__call__(torch.where(is_padding, last_of_prompt, input_ids), scores)


def _check(holds: bool, name: str, value: float, wanted: str) -> None:
    if not holds:
        raise UserError(f"{name} is {value:g}, which must be {wanted}.")
