"""Logits at the positions that count, no more of them at once than memory should hold."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence

import torch
from peft import PeftModel
from torch import Tensor

from lora_dpo.tree.precision import widened
from lora_dpo.tree.sequences import Completion, padded, padded_batches

_LOGIT_BYTES = 2**29
"""Bound on the logits of a forward pass, as if they were float32; one sequence is taken whatever its size."""
_SOFTMAX_BYTES = 2**26
"""Bound on the float32 log-probabilities of several positions."""


def bounded_batches(
    model: torch.nn.Module, sequences: Sequence[Completion], most_bytes: int = _LOGIT_BYTES
) -> list[list[int]]:
    """Cuts sequences, longest first, into forward passes whose logits do not get too large.

    Args:
        model: A causal language model.
        sequences: The sequences.
        most_bytes: Bound on the logits of a forward pass, where it is to be lower.
    """
    vocabulary = model.config.get_text_config().vocab_size
    return padded_batches(sequences, len(sequences), min(most_bytes, _LOGIT_BYTES) // (4 * vocabulary))


def scored_logits(model: torch.nn.Module, sequences: Sequence[Completion]) -> Tensor:
    """Returns the logits that predict the scored tokens, sequence after sequence, in the model's precision.

    Args:
        model: A causal language model.
        sequences: What is read in one forward pass.

    Returns:
        Logits, shape (scored tokens of all sequences, vocabulary).
    """
    ids, _, scored = (part.to(model.device) for part in padded(sequences).values())
    first, width = min(sequence.start for sequence in sequences), ids.shape[1]
    own = model.get_base_model() if isinstance(model, PeftModel) else model
    takes_part = "logits_to_keep" in inspect.signature(own.forward).parameters
    # Token t is predicted at t - 1, so those before the first scored token's predictor need no logits.
    part = {"logits_to_keep": width - first + 1} if takes_part else {}
    # The padding comes last, where no token sees it; with a mask, a window of padding alone would see nothing at all.
    logits = model(input_ids=ids, use_cache=False, **part).logits
    return logits[:, first - width - 1 : -1][scored[:, first:].bool()]


def log_probs(*logits: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yields the log-probabilities of a few positions at a time, in float32, or float64 where the logits are.

    Args:
        logits: Logits of the same positions, each of shape (positions, vocabulary).
    """
    positions = max(1, _SOFTMAX_BYTES // (4 * logits[0].shape[1]))
    for parts in zip(*(each.split(positions) for each in logits), strict=True):
        yield tuple(widened(part).log_softmax(-1) for part in parts)
