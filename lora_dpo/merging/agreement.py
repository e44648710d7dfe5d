"""How near two models are: the same tokens, the same probabilities, the same text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn import functional as F

from lora_dpo.evaluation.logits import bounded_batches, scored_logits
from lora_dpo.merging.probes import Probes

_POSITIONS = 32
"""Positions whose probabilities are held at once."""

_LOGIT_BYTES = 2**26
"""Bound on the logits of a forward pass, where no weight is larger."""

Opened = Callable[[], AbstractContextManager[Module]]
"""Yields a model with its weights at hand."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """How near a model is to what it should be, over all tokens that were compared.

    Attributes:
        top1_agreement: Part of the tokens before which both models find the same token the most likely one.
        kl_mean: KL(expected || found) of the next token, over the whole vocabulary, in nats; the mean over tokens.
        logp_max_abs: Largest difference of the log-probability of a token that stands in the text, in nats.
    """

    top1_agreement: float
    kl_mean: float
    logp_max_abs: float


def compare(expected: Opened, others: Mapping[str, Opened], probes: Probes) -> dict[str, Agreement]:
    """Compares models with one that they should be as near to as can be.

    Args:
        expected: That model.
        others: The models, by name.
        probes: What they read.
    """
    found: dict[str, list[Tensor]] = {name: [] for name in others}
    with torch.no_grad():
        with expected() as model:
            largest = max(parameter.numel() for parameter in model.parameters())
            # Two models' logits take half of what the head takes in float32; each batch reads the whole model.
            batches = bounded_batches(model, probes.sequences, max(_LOGIT_BYTES, largest))
        for places in batches:
            sequences = [probes.sequences[place] for place in places]
            tokens = torch.tensor([token for sequence in sequences for token in sequence.ids[sequence.start :]])[
                :, None
            ]
            with expected() as model:
                right = scored_logits(model, sequences)
            for name, opened in others.items():
                with opened() as model:
                    found[name].append(_distances(right, scored_logits(model, sequences), tokens.to(right.device)))
    return {name: _summary(torch.cat(parts)) for name, parts in found.items()}


def _distances(right: Tensor, other: Tensor, tokens: Tensor) -> Tensor:
    """Returns for each token: is the most likely one the same, the divergence, the difference of its log-probs.

    Args:
        right: Logits that predict the tokens, shape (tokens, vocabulary).
        other: Another model's, of the same shape.
        tokens: The tokens, shape (tokens, 1).

    Returns:
        Three columns, float64 on the CPU.
    """
    rows = []
    for parts in zip(*(each.split(_POSITIONS) for each in (right, other, tokens)), strict=True):
        one, two = (part.double().log_softmax(-1) for part in parts[:2])  # in float32, a KL of 0 would be 1e-8
        same = one.argmax(-1) == two.argmax(-1)
        divergence = F.kl_div(two, one, reduction="none", log_target=True).sum(-1)
        difference = (one - two).gather(1, parts[2]).abs().squeeze(1)
        rows.append(torch.stack([same.double(), divergence, difference], 1).cpu())
    return torch.cat(rows)


def _summary(distances: Tensor) -> Agreement:
    same, divergence, difference = distances.unbind(1)
    return Agreement(same.mean().item(), divergence.mean().item(), difference.max().item())
