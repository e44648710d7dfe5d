"""What the alignment cost: how far the policy went from its reference, and how often it won and lost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import torch
from torch import Tensor
from torch.nn import functional as F

from lora_dpo.evaluation.logits import bounded_batches, log_probs, scored_logits
from lora_dpo.evaluation.policies import Policies
from lora_dpo.evaluation.work import Work, name_of
from lora_dpo.tree.sequences import Completion


class Divergence(TypedDict):
    """KL(policy || reference) on the policy's own answers.

    Attributes:
        nats: For each question the sum over its answer's tokens.
        tokens: For each question its answer's tokens, the one that ended the turn included.
        per_token: sum(nats) / sum(tokens): the mean over all tokens, in nats. Longer answers count more.
    """

    nats: list[float]
    tokens: list[int]
    per_token: float


class Wins(TypedDict):
    """In how many questions after is above before, below, and neither."""

    win: int
    loss: int
    tie: int


def divergence(
    work: Work,
    policies: Policies,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    *,
    batch_size: int,
) -> Divergence:
    r"""Measures how far the policy is from its reference, exactly over the whole vocabulary at every position.

    With answers y that the policy itself has sampled at temperature 1, the mean over answers of

        \sum_t \sum_v \pi(v | x, y_{<t}) log(\pi(v | x, y_{<t}) / \pi_ref(v | x, y_{<t}))

    is an unbiased estimate of KL(\pi || \pi_ref) over answers, of lower variance than the log-ratio of the sampled
    tokens (Amini, Vieira, Cotterell, Better Estimation of the KL Divergence Between Language Models, 2025,
    https://arxiv.org/abs/2504.10637). Answers that were cut at their limit leave out what would have followed. On
    greedy answers it is no estimate of anything but of the distance along these very answers.

    Args:
        work: How the forward passes are carried out.
        policies: The policy (after) and its reference (before).
        prompts: The prompts, as token ids.
        answers: For each prompt the policy's answer, as token ids: `Answer.ids` of `compare_answers(...)["after"]`.
        batch_size: Answers read at once.

    Raises:
        ValueError: There is no answer.
    """
    if not answers:
        raise ValueError("without answers there is no divergence")
    sequences = [Completion.of(*pair) for pair in zip(prompts, answers, strict=True)]

    def compute(batch: list[Completion]) -> list[float]:
        nats = [0.0] * len(batch)
        for places in bounded_batches(policies.trained, batch):
            read = [batch[place] for place in places]
            with policies.after() as model:
                after = scored_logits(model, read)
            with policies.before() as model:
                before = scored_logits(model, read)
            values = divergences(after, before.to(after.device))
            for place, own in zip(places, values.split([sequence.n_scored for sequence in read]), strict=True):
                nats[place] = own.sum().item()
        return nats

    names = [name_of(sequence.ids.tolist(), sequence.start) for sequence in sequences]
    nats = work.map(
        "divergence", sequences, names, compute, batch_size=batch_size, size=lambda sequence: len(sequence.ids)
    )
    tokens = [sequence.n_scored for sequence in sequences]
    return {"nats": nats, "tokens": tokens, "per_token": sum(nats) / sum(tokens)}


def divergences(logits: Tensor, reference_logits: Tensor) -> Tensor:
    """Returns KL(policy || reference) at each position, in nats.

    Args:
        logits: The policy's, shape (positions, vocabulary).
        reference_logits: The reference's, of the same shape.

    Returns:
        Divergences, shape (positions,), float64 on the CPU.
    """
    parts = (
        F.kl_div(before, after, reduction="none", log_target=True).sum(-1).double().cpu()
        for after, before in log_probs(logits, reference_logits)
    )
    return torch.cat(list(parts))


def count_wins(before: Sequence[float], after: Sequence[float], *, tolerance: float = 0.0) -> Wins:
    """Counts the questions that went up, went down and stayed.

    Args:
        before: A value for each question, of which more is better.
        after: The same questions' values.
        tolerance: Differences up to this size are ties.
    """
    gains = [new - old for old, new in zip(before, after, strict=True)]
    win, loss = sum(gain > tolerance for gain in gains), sum(gain < -tolerance for gain in gains)
    return {"win": win, "loss": loss, "tie": len(gains) - win - loss}
