"""Sequences whose completions are scored: from pairs, each once, and cut into forward passes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lora_dpo.tree.forest import Index, common_prefix

TREE_TOKENS = 4096
"""Distinct tokens of a forward pass without gradients, where nothing else says how many fit."""
KEY = "S32"
"""Keys are compared as bytes; numpy takes trailing zeros off, which loses nothing where all have one length."""


class Completion(NamedTuple):
    """A sequence whose tokens from `start` on are scored.

    Attributes:
        ids: Prompt and completion, shape (T,).
        start: Where the completion begins; at least 1 where anything is scored, since nothing predicts a first token.
    """

    ids: NDArray[np.int32]
    start: int

    @classmethod
    def of(cls, prompt: Sequence[int], completion: Sequence[int]) -> Completion:
        """Returns the sequence of a prompt and its completion."""
        return cls(np.array([*prompt, *completion], np.int32), len(prompt))

    @property
    def n_scored(self) -> int:
        """Tokens that are scored."""
        return len(self.ids) - self.start

    @property
    def key(self) -> bytes:
        """SHA-256 of what is scored after what."""
        return hashlib.sha256(self.start.to_bytes(8, "little") + self.ids.astype("<i4").tobytes()).digest()


@dataclass(frozen=True, slots=True, eq=False)
class Distinct:
    """Sequences, each once.

    Attributes:
        keys: Their keys in order, shape (S,).
        sequences: The sequences, in the order of the keys.
        places: For each sequence that was given, its place among these, shape (given,).
    """

    keys: NDArray[np.bytes_]
    sequences: list[Completion]
    places: Index

    @classmethod
    def of(cls, given: Sequence[Completion]) -> Distinct:
        """Returns the distinct ones of these sequences."""
        keys, first, places = np.unique(
            np.array([sequence.key for sequence in given], KEY), return_index=True, return_inverse=True
        )
        return cls(keys, [given[index] for index in first], places)


def unpadded(batch: Mapping[str, Tensor]) -> list[Completion]:
    """Returns the sequences of a collated batch: what is left of them once the collator has cut them to its length.

    Args:
        batch: `input_ids`, `attention_mask` and `completion_mask`, each (sequences, T).
    """
    ids, present, scored = (batch[name].numpy() for name in ("input_ids", "attention_mask", "completion_mask"))
    sequences = [row[here].astype(np.int32) for row, here in zip(ids, present.astype(bool), strict=True)]
    # A first token that is scored, as truncation from the left can leave it, has nothing that predicts it.
    starts = [
        max(len(sequence) - count, min(1, len(sequence)))
        for sequence, count in zip(sequences, scored.sum(1).tolist(), strict=True)
    ]
    return [Completion(*each) for each in zip(sequences, starts, strict=True)]


def padded(sequences: Sequence[Completion]) -> dict[str, Tensor]:
    """Returns the batch of these sequences, in the columns of TRL's collator: each (sequences, T)."""
    ids = pad_sequence([torch.from_numpy(sequence.ids.astype(np.int64)) for sequence in sequences], batch_first=True)
    lengths, starts = (
        torch.tensor(part)[:, None] for part in zip(*((len(ids), start) for ids, start in sequences), strict=True)
    )
    positions = torch.arange(ids.shape[1])
    present = positions < lengths
    return {
        "input_ids": ids,
        "attention_mask": present.long(),
        "completion_mask": (present & (positions >= starts)).long(),
    }


def scored_values(values: Any, sequences: Sequence[Completion]) -> list[Any]:
    """Returns what stands at each sequence's scored tokens.

    Args:
        values: One for each token but the first, shape (sequences, T - 1).
        sequences: The sequences of the batch.
    """
    return [row[start - 1 : len(ids) - 1] for row, (ids, start) in zip(values, sequences, strict=True)]


def pair_log_probs(
    chosen: NDArray[np.float32], rejected: NDArray[np.float32], ld_alpha: float | None
) -> tuple[float, float]:
    """Returns the log-probs of a pair's two answers.

    With `ld_alpha`, tokens beyond the shorter answer's length count that much (LD-DPO, Liu et al. 2024).

    Args:
        chosen: Log-probs of the better answer's tokens, or their sum alone where `ld_alpha` is None.
        rejected: The same of the worse answer.
        ld_alpha: Weight of the tokens beyond, or None.
    """
    shared = min(len(chosen), len(rejected))
    beyond = 1.0 if ld_alpha is None else ld_alpha
    one, other = (
        float(values[:shared].sum(dtype=np.float64) + beyond * values[shared:].sum(dtype=np.float64))
        for values in (chosen, rejected)
    )
    return one, other


def tree_batches(sequences: Sequence[Completion], tokens: int) -> list[list[int]]:
    """Cuts the sequences, neighbours sharing as much as can be, where a batch's tree would get too large.

    Args:
        sequences: The sequences.
        tokens: Distinct tokens that a batch may have; a longer sequence is a batch of its own.
    """
    batches: list[list[int]] = []
    size, before = 0, np.empty(0, np.int32)
    # Bytes of big-endian numbers compare like the numbers, and in C.
    for index in sorted(range(len(sequences)), key=lambda index: sequences[index].ids.astype(">u4").tobytes()):
        ids = sequences[index].ids
        added = len(ids) - common_prefix(before, ids)
        if not batches or size + added > tokens:
            batches.append([])
            size, added = 0, len(ids)
        batches[-1].append(index)
        size, before = size + added, ids
    return batches


def padded_batches(sequences: Sequence[Completion], most: int, positions: int | None = None) -> list[list[int]]:
    """Cuts the sequences, longest first, into padded batches.

    Args:
        sequences: The sequences.
        most: Sequences that a batch may have.
        positions: Tokens that a batch may have, padding included; a longer sequence is a batch of its own.
    """
    order = sorted(range(len(sequences)), key=lambda index: -len(sequences[index].ids))
    batches: list[list[int]] = []
    start = 0
    while start < len(order):
        width = len(sequences[order[start]].ids)  # the first is the longest
        size = most if positions is None else max(1, min(most, positions // width))
        batches.append(order[start : start + size])
        start += size
    return batches
