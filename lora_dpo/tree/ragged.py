"""Vectors of different lengths, in one array."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lora_dpo.tree.forest import Index


@dataclass(frozen=True, slots=True, eq=False)
class Ragged:
    """Vectors, one behind the other.

    Attributes:
        values: All of them, shape (M,).
        lengths: Of each vector, shape (S,); they add up to M.
    """

    values: NDArray[np.float32]
    lengths: Index

    @classmethod
    def zeros(cls, lengths: Sequence[int]) -> Ragged:
        """Returns zeros of these lengths."""
        return cls(np.zeros(sum(lengths), np.float32), np.asarray(lengths, np.int64))

    @classmethod
    def joined(cls, parts: Sequence[Ragged]) -> Ragged:
        """Returns the vectors of all parts, in order."""
        return cls(
            np.concatenate([part.values for part in parts] or [np.empty(0, np.float32)]),
            np.concatenate([part.lengths for part in parts] or [np.empty(0, np.int64)]),
        )

    def __len__(self) -> int:
        return len(self.lengths)

    def split(self) -> list[NDArray[np.float32]]:
        """Returns the vectors, as views that can be written to."""
        return np.split(self.values, self.lengths.cumsum()[:-1]) if len(self) else []

    def take(self, places: Index) -> Ragged:
        """Returns the vectors at these places."""
        lengths = self.lengths[places]
        first = (self.lengths.cumsum() - self.lengths)[places]
        inside = np.arange(lengths.sum()) - np.repeat(lengths.cumsum() - lengths, lengths)
        return Ragged(self.values[np.repeat(first, lengths) + inside], lengths)

    def finite(self) -> Index:
        """Returns the places of the vectors that hold finite numbers only."""
        owners = np.repeat(np.arange(len(self)), self.lengths)
        return np.setdiff1d(np.arange(len(self)), owners[~np.isfinite(self.values)])
