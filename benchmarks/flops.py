"""Counting floating-point operations, those included that torch leaves out: the CPU's attention, in-place products."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

_aten = torch.ops.aten


def counting_flops() -> FlopCounterMode:
    """Returns a context that counts; ask it for `get_total_flops()`. A multiplication and an addition are two."""
    return FlopCounterMode(
        display=False,
        custom_mapping={
            _aten.addmm_: _product,
            _aten.baddbmm_: _product,
            _aten._scaled_dot_product_flash_attention_for_cpu: _attention,
            _aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
        },
    )


def _product(total: torch.Size, left: torch.Size, right: torch.Size, **_: Any) -> int:
    return 2 * math.prod(left) * right[-1]


def _attention(
    query: torch.Size, key: torch.Size, value: torch.Size, dropout_p: float = 0.0, is_causal: bool = False, **_: Any
) -> int:
    return _seen(sdpa_flop_count(query, key, value), query, is_causal)


def _attention_backward(
    gradient: torch.Size,
    query: torch.Size,
    key: torch.Size,
    value: torch.Size,
    output: torch.Size,
    normaliser: torch.Size,
    dropout_p: float,
    is_causal: bool,
    **_: Any,
) -> int:
    return _seen(sdpa_backward_flop_count(gradient, query, key, value), query, is_causal)


def _seen(flops: int, query: torch.Size, is_causal: bool) -> int:
    """Leaves out the half that a causal kernel does not compute."""
    rows = query[-2]
    return flops * (rows + 1) // (2 * rows) if is_causal else flops
