"""A few held-out questions with the answers before and after, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

from lora_dpo.data.chat import TokenisedPair, TurnEncoder
from lora_dpo.evaluation.answers import compare_answers
from lora_dpo.evaluation.policies import Policies
from lora_dpo.evaluation.work import Work


class Sample(TypedDict):
    """One held-out question with the model's greedy answers, and the answer that people chose."""

    prompt: str
    before: str
    after: str
    chosen: str


def draw_samples(
    work: Work,
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
        work: How the forward passes are carried out.
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
    answers = compare_answers(work, policies, encoder, prompts, max_new_tokens=max_new_tokens, batch_size=batch_size)
    return [
        {
            "prompt": pair.pair.prompt[-1]["content"],
            "before": old["text"],
            "after": new["text"],
            "chosen": pair.pair.chosen,
        }
        for pair, old, new in zip(asked, answers["before"], answers["after"], strict=True)
    ]
