"""Answers to held-out questions, before and after, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import torch

from lora_dpo.console import tracked
from lora_dpo.data.chat import TokenisedPair, TurnEncoder
from lora_dpo.evaluation.policies import Policies


class Sample(TypedDict):
    """One held-out question with the model's greedy answers, and the answer that people chose."""

    prompt: str
    before: str
    after: str
    chosen: str


def compare_answers(
    policies: Policies,
    encoder: TurnEncoder,
    pairs: Sequence[TokenisedPair],
    *,
    count: int,
    max_new_tokens: int,
    batch_size: int,
) -> list[Sample]:
    """Answers the first `count` held-out questions greedily, before and after.

    Args:
        policies: The two policies.
        encoder: How turns become tokens.
        pairs: Held-out pairs; a question is asked once.
        count: Number of questions.
        max_new_tokens: Longest answer in tokens.
        batch_size: Answers written at once.
    """
    first_of_group = {pair.pair.group: pair for pair in reversed(pairs)}
    asked = list(reversed(first_of_group.values()))[:count]
    prompts = [pair.prompt_ids for pair in asked]
    with policies.before() as model:
        before = write_answers(model, encoder, prompts, max_new_tokens, batch_size)
    with policies.after() as model:
        after = write_answers(model, encoder, prompts, max_new_tokens, batch_size)
    return [
        {"prompt": pair.pair.prompt[-1]["content"], "before": old, "after": new, "chosen": pair.pair.chosen}
        for pair, old, new in zip(asked, before, after, strict=True)
    ]


def write_answers(
    model: torch.nn.Module, encoder: TurnEncoder, prompts: Sequence[list[int]], max_new_tokens: int, batch_size: int
) -> list[str]:
    """Returns the greedy answers to prompts given as token ids; one ends at the latest where the positions do."""
    tokenizer = encoder.tokenizer
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    stops = {encoder.end_of_turn_id, tokenizer.eos_token_id} - {None}
    answers: list[str] = []
    for start in tracked(range(0, len(prompts), batch_size), "writing answers"):
        batch = prompts[start : start + batch_size]
        width = max(map(len, batch))
        ids = torch.tensor([[tokenizer.pad_token_id] * (width - len(prompt)) + prompt for prompt in batch])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in batch])
        written = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=max_new_tokens if positions is None else max(1, min(max_new_tokens, positions - width)),
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            eos_token_id=sorted(stops),
            pad_token_id=tokenizer.pad_token_id,
        )
        answers += [text.strip() for text in tokenizer.batch_decode(written[:, width:], skip_special_tokens=True)]
    return answers
