"""How a model answers: prompts of a batch, token by token, by scores alone or with noise that belongs to the prompt."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypedDict

import torch
from peft import PeftModel
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from lora_dpo.errors import UserError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

Prompts = Sequence[Sequence[int]]
"""The prompts of a batch, as token ids."""


class Answer(TypedDict):
    """One answer.

    `ids` are its tokens, with the one that ended the turn where `ended`; otherwise the answer ran into its limit.
    `text` has no special tokens, and no white space around it.
    """

    text: str
    ids: list[int]
    ended: bool


def write_batch(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Prompts,
    *,
    max_new_tokens: int,
    stops: Collection[int],
    processors: Callable[[Prompts], list[LogitsProcessor]],
    **watching: Any,
) -> list[Answer]:
    """Returns a model's answers to a batch of prompts; each is the most likely token after the other.

    The model's own generation settings, such as a repetition penalty, do not apply: what is not asked for is not done.

    Args:
        model: A causal language model in evaluation mode.
        tokenizer: Its tokenizer, with a padding token.
        prompts: The prompts.
        max_new_tokens: Longest answer in tokens; it is shorter where its own prompt leaves fewer positions.
        stops: Tokens that end an answer.
        processors: What changes the scores of the next tokens; is given the prompts that are answered together.
        watching: Further arguments of `generate` that do not change what is written: `streamer`, `stopping_criteria`.

    Raises:
        UserError: A prompt leaves no position for an answer.
    """
    positions = positions_of(model.config)
    by_room: dict[int, list[int]] = defaultdict(list)
    for place, prompt in enumerate(prompts):
        by_room[room_after(len(prompt), positions, max_new_tokens)].append(place)
    found: dict[int, Answer] = {}
    for room, places in by_room.items():
        asked = [prompts[place] for place in places]
        ids, present = padded(asked, tokenizer.pad_token_id)
        with _without_own_settings(model):
            written = model.generate(
                input_ids=ids.to(model.device),
                attention_mask=present.to(model.device),
                max_new_tokens=room,
                do_sample=False,
                logits_processor=LogitsProcessorList(processors(asked)),
                eos_token_id=sorted(stops),
                pad_token_id=tokenizer.pad_token_id,
                **watching,
            )
        rows = written[:, ids.shape[1] :].tolist()
        found |= zip(places, (_answer(row, stops, tokenizer) for row in rows), strict=True)
    return [found[place] for place in range(len(prompts))]


def positions_of(config: PretrainedConfig) -> int | None:
    """Returns how many tokens a model can read; None is any number."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def room_after(prompt_tokens: int, positions: int | None, most: int) -> int:
    """Returns how many tokens an answer may have.

    Args:
        prompt_tokens: Tokens of its prompt.
        positions: What `positions_of` returns.
        most: Longest answer that is asked for.

    Raises:
        UserError: None.
    """
    if positions is None:
        return most
    if prompt_tokens >= positions:
        raise UserError(
            f"A prompt of {prompt_tokens} tokens leaves no room for an answer: the model has {positions} positions.",
            fix="Leave the question out, or shorten it.",
        )
    return min(most, positions - prompt_tokens)


def padded(prompts: Prompts, pad_token_id: int) -> tuple[Tensor, Tensor]:
    """Returns a batch's token ids, padded on the left, and which of them are there, both (batch, width)."""
    width = max(map(len, prompts))
    ids = torch.tensor([[pad_token_id] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    present = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return ids, present


class Noise(LogitsProcessor):
    r"""Adds noise that makes the largest score a draw from the softmax of the scores (the Gumbel-max trick).

    argmax_v (s_v + g_v) with g_v = -log(-log u_v) has the distribution softmax(s); see Maddison, Tarlow, Minka, A*
    Sampling (2014). Each answer's noise comes from a generator of its own, on the CPU, seeded by the seed and the
    prompt's tokens: neither the batch nor the device nor the number of processes changes it.

    Args:
        seed: The seed, or one for each prompt.
        prompts: The batch's prompts, as token ids.
    """

    def __init__(self, seed: int | Sequence[int], prompts: Prompts) -> None:
        seeds = [seed] * len(prompts) if isinstance(seed, int) else seed
        pairs = zip(seeds, prompts, strict=True)
        self._generators = [torch.Generator().manual_seed(seed_of(own, prompt)) for own, prompt in pairs]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Returns scores (batch, vocabulary) with noise."""
        size = scores.shape[1]
        uniform = torch.stack([torch.rand(size, generator=own, dtype=torch.float64) for own in self._generators])
        return scores - (-uniform.log()).log().to(scores)


def seed_of(seed: int, prompt: Sequence[int]) -> int:
    """Returns the seed of one answer's noise."""
    digest = hashlib.sha256(json.dumps([seed, list(prompt)]).encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


def _answer(written: list[int], stops: Collection[int], tokenizer: PreTrainedTokenizerBase) -> Answer:
    end = next((place for place, token in enumerate(written) if token in stops), None)
    text = tokenizer.decode(written[:end], skip_special_tokens=True).strip()
    return {"text": text, "ids": written if end is None else written[: end + 1], "ended": end is not None}


@contextmanager
def _without_own_settings(model: torch.nn.Module) -> Iterator[None]:
    """Puts the model's generation settings aside: what a call does not set is taken from there."""
    owner = model.get_base_model() if isinstance(model, PeftModel) else model
    own, owner.generation_config = owner.generation_config, GenerationConfig()
    try:
        yield
    finally:
        owner.generation_config = own
