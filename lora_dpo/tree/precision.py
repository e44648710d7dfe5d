"""Sums are kept in float32, or in float64 where the model is."""

from __future__ import annotations

import torch
from torch import Tensor


def widened(tensor: Tensor) -> Tensor:
    """Returns the tensor in float32, or in float64 if it is in that."""
    return tensor.to(wide_dtype(tensor))


def wide_dtype(tensor: Tensor) -> torch.dtype:
    """Returns the dtype that sums of a tensor's values are kept in."""
    return torch.promote_types(tensor.dtype, torch.float32)
