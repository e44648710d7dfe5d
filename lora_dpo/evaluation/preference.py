"""Does the model prefer what people prefer? Held-out accuracy and margin, every question counting the same."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean
from typing import TypedDict

import torch

from lora_dpo.data.chat import TokenisedPair
from lora_dpo.evaluation.policies import Policies
from lora_dpo.evaluation.scoring import score


class Preference(TypedDict):
    """Held-out preference of one policy.

    `accuracy` is the part of pairs in which the chosen answer is the more probable one, `margin` the mean of
    log p(chosen) - log p(rejected) in nats. Both are means over questions of the mean over a question's pairs.
    """

    accuracy: float
    margin: float
    n_pairs: int
    n_groups: int


def compare_preference(policies: Policies, pairs: Sequence[TokenisedPair], batch_size: int) -> dict[str, Preference]:
    """Scores held-out pairs before and after.

    Args:
        policies: The two policies.
        pairs: Held-out pairs.
        batch_size: Sequences a forward pass.

    Returns:
        `{"before": ..., "after": ...}`.
    """
    with policies.before() as model:
        before = margins(model, pairs, batch_size, "scoring, before")
    with policies.after() as model:
        after = margins(model, pairs, batch_size, "scoring, after ")
    groups = [pair.pair.group for pair in pairs]
    return {"before": summarise(before, groups), "after": summarise(after, groups)}


def margins(model: torch.nn.Module, pairs: Sequence[TokenisedPair], batch_size: int, label: str) -> list[float]:
    """Returns log p(chosen) - log p(rejected) of each pair, in nats.

    An answer that stands in several pairs of one question is scored once.
    """
    keys: dict[tuple[tuple[int, ...], tuple[int, ...]], int] = {}
    for pair in pairs:
        for completion in (pair.chosen_ids, pair.rejected_ids):
            keys.setdefault((tuple(pair.prompt_ids), tuple(completion)), len(keys))
    scores = score(model, [(list(prompt), list(completion)) for prompt, completion in keys], batch_size, label)

    def score_of(pair: TokenisedPair, completion: list[int]) -> float:
        return scores[keys[tuple(pair.prompt_ids), tuple(completion)]].item()

    return [score_of(pair, pair.chosen_ids) - score_of(pair, pair.rejected_ids) for pair in pairs]


def summarise(margins: Sequence[float], groups: Sequence[str]) -> Preference:
    """Averages margins within each question, then over questions; a margin of exactly 0 counts as half right."""
    by_group: dict[str, list[float]] = defaultdict(list)
    for margin, group in zip(margins, groups, strict=True):
        by_group[group].append(margin)
    right = {group: fmean((value > 0) + 0.5 * (value == 0) for value in values) for group, values in by_group.items()}
    return {
        "accuracy": fmean(right.values()),
        "margin": fmean(fmean(values) for values in by_group.values()),
        "n_pairs": len(margins),
        "n_groups": len(by_group),
    }
