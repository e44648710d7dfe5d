"""Answers to held-out questions, greedy or sampled, before and after."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TypedDict

import torch

from lora_dpo.data.chat import TurnEncoder
from lora_dpo.evaluation.policies import Policies
from lora_dpo.evaluation.work import Work, name_of
from lora_dpo.model.answering import Answer, Noise, write_batch


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
        return write_batch(
            model,
            encoder.tokenizer,
            batch,
            max_new_tokens=max_new_tokens,
            stops=encoder.stops,
            processors=lambda asked: [] if seed is None else [Noise(seed, asked)],
        )

    names = [name_of(list(prompt), max_new_tokens, seed) for prompt in prompts]
    return work.map(what, prompts, names, compute, batch_size=batch_size, size=len)
