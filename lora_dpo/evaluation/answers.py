"""Answers to held-out questions, greedy or sampled, before and after."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TypedDict

import torch
from peft import PeftModel
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from lora_dpo.data.chat import TurnEncoder
from lora_dpo.errors import UserError
from lora_dpo.evaluation.policies import Policies
from lora_dpo.evaluation.work import Work, name_of


class Answer(TypedDict):
    """One answer.

    `ids` are its tokens, with the one that ended the turn where `ended`; otherwise the answer ran into its limit.
    `text` has no special tokens, and no white space around it.
    """

    text: str
    ids: list[int]
    ended: bool


class Answers(TypedDict):
    """The answers of both policies, in the order of the questions."""

    before: list[Answer]
    after: list[Answer]


def compare_answers(
    work: Work,
    policies: Policies,
    encoder: TurnEncoder,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    batch_size: int,
    seed: int | None = None,
) -> Answers:
    """Answers every prompt before and after.

    Args:
        work: How the forward passes are carried out.
        policies: The two policies.
        encoder: How turns become tokens.
        prompts: The prompts, as token ids.
        max_new_tokens: Longest answer in tokens; it may be shorter where the model has no more positions.
        batch_size: Answers written at once.
        seed: Samples with this seed at temperature 1; None is greedy. Both policies meet the same noise, so that a
            change of their answers is a change of the policy.

    Raises:
        UserError: A prompt leaves no position for an answer.
    """
    write = partial(write_answers, work, max_new_tokens=max_new_tokens, batch_size=batch_size, seed=seed)
    kind = "greedy answers" if seed is None else "sampled answers"
    with policies.before() as model:
        before = write(model, encoder, prompts, f"{kind}, before")
    with policies.after() as model:
        after = write(model, encoder, prompts, f"{kind}, after")
    return {"before": before, "after": after}


def write_answers(
    work: Work,
    model: torch.nn.Module,
    encoder: TurnEncoder,
    prompts: Sequence[Sequence[int]],
    what: str,
    *,
    max_new_tokens: int,
    batch_size: int,
    seed: int | None = None,
) -> list[Answer]:
    """Returns a model's answers; each depends on its prompt and the seed alone, up to rounding.

    The model's own generation settings, such as a repetition penalty, do not apply: the answers are the policy's.

    Args:
        work: How the forward passes are carried out.
        model: A causal language model in evaluation mode.
        encoder: How turns become tokens.
        prompts: The prompts, as token ids.
        what: What is written, in a few words that differ for each model.
        max_new_tokens: Longest answer in tokens.
        batch_size: Answers written at once.
        seed: Seed of the sampling; None is greedy.

    Raises:
        UserError: A prompt leaves no position for an answer.
    """

    def compute(batch: list[Sequence[int]]) -> list[Answer]:
        by_room: dict[int, list[int]] = defaultdict(list)
        for place, prompt in enumerate(batch):
            by_room[_room(model, prompt, max_new_tokens)].append(place)
        found: dict[int, Answer] = {}
        for room, places in by_room.items():
            found |= zip(places, _generate(model, encoder, [batch[place] for place in places], room, seed), strict=True)
        return [found[place] for place in range(len(batch))]

    names = [name_of(list(prompt), max_new_tokens, seed) for prompt in prompts]
    return work.map(what, prompts, names, compute, batch_size=batch_size, size=len)


def _room(model: torch.nn.Module, prompt: Sequence[int], most: int) -> int:
    """Returns how many tokens an answer may have: it depends on its own prompt, not on those beside it."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if positions is None:
        return most
    if len(prompt) >= positions:
        raise UserError(
            f"A prompt of {len(prompt)} tokens leaves no room for an answer: the model has {positions} positions.",
            fix="Leave the question out, or shorten it.",
        )
    return min(most, positions - len(prompt))


def _generate(
    model: torch.nn.Module, encoder: TurnEncoder, prompts: Sequence[Sequence[int]], room: int, seed: int | None
) -> list[Answer]:
    tokenizer = encoder.tokenizer
    stops = {encoder.end_of_turn_id, tokenizer.eos_token_id} - {None}
    width = max(map(len, prompts))
    ids = torch.tensor([[tokenizer.pad_token_id] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    present = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    with _without_own_settings(model):
        written = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=present.to(model.device),
            max_new_tokens=room,
            do_sample=False,
            logits_processor=LogitsProcessorList([] if seed is None else [_Gumbel(seed, prompts)]),
            eos_token_id=sorted(stops),
            pad_token_id=tokenizer.pad_token_id,
        )
    return [_answer(row, stops, encoder) for row in written[:, width:].tolist()]


def _answer(written: list[int], stops: set[int], encoder: TurnEncoder) -> Answer:
    end = next((place for place, token in enumerate(written) if token in stops), None)
    text = encoder.tokenizer.decode(written[:end], skip_special_tokens=True).strip()
    return {"text": text, "ids": written if end is None else written[: end + 1], "ended": end is not None}


class _Gumbel(LogitsProcessor):
    r"""Adds noise that makes the largest score a draw from the softmax of the scores (the Gumbel-max trick).

    argmax_v (s_v + g_v) with g_v = -log(-log u_v) has the distribution softmax(s); see Maddison, Tarlow, Minka, A*
    Sampling (2014). Each answer's noise comes from a generator of its own, on the CPU, seeded by the seed and the
    prompt's tokens: neither the batch nor the device nor the number of processes changes it.

    Args:
        seed: The seed.
        prompts: The batch's prompts, as token ids.
    """

    def __init__(self, seed: int, prompts: Sequence[Sequence[int]]) -> None:
        self._generators = [torch.Generator().manual_seed(_seed_of(seed, prompt)) for prompt in prompts]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        size = scores.shape[1]
        uniform = torch.stack([torch.rand(size, generator=own, dtype=torch.float64) for own in self._generators])
        return scores - (-uniform.log()).log().to(scores)


def _seed_of(seed: int, prompt: Sequence[int]) -> int:
    digest = hashlib.sha256(json.dumps([seed, list(prompt)]).encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


@contextmanager
def _without_own_settings(model: torch.nn.Module) -> Iterator[None]:
    """Puts the model's generation settings aside: what a call does not set is taken from there."""
    owner = model.get_base_model() if isinstance(model, PeftModel) else model
    own, owner.generation_config = owner.generation_config, GenerationConfig()
    try:
        yield
    finally:
        owner.generation_config = own
