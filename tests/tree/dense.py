"""Attention over a forest as plain masked softmax in double precision: what every kernel is compared with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lora_dpo.tree.forest import Forest
from lora_dpo.tree.tree import Tree
from tests.tree.forests import seen

HEADS = [(4, 4), (4, 2), (3, 1)]
SCALE = 0.6
# A stem of 3; below it chains of 5 and 4, which fork into 6 and 2, and into 3 and 2; and a tree of its own of 7.
FORKED = [
    [1, 1, 1, 2, 2, 2, 2, 2, 4, 4, 4, 4, 4, 4],
    [1, 1, 1, 2, 2, 2, 2, 2, 5, 5],
    [1, 1, 1, 3, 3, 3, 3, 8, 8, 8],
    [1, 1, 1, 3, 3, 3, 3, 9, 9],
    [6, 6, 6, 6, 6, 6, 6],
]


class Result(NamedTuple):
    output: Tensor
    of_query: Tensor
    of_key: Tensor
    of_value: Tensor


def inputs(
    forest: Forest, heads: tuple[int, int], dtype: torch.dtype = torch.float32, head_dim: int = 8
) -> list[Tensor]:
    """Returns queries, keys, values and a gradient of the output, as random as they are reproducible."""
    generator = torch.Generator().manual_seed(len(forest))
    length, (query_heads, key_heads) = len(forest), heads
    shapes = [(1, n, length, head_dim) for n in (query_heads, key_heads, key_heads)]
    shapes.append((1, length, query_heads, head_dim))
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def attended(attend: Callable[..., Tensor], parts: list[Tensor], tree: Tree, **options: Any) -> Result:
    """Returns what a kernel makes of `inputs`, forward and backward."""
    query, key, value = (part.detach().clone().requires_grad_() for part in parts[:3])
    output = attend(query, key, value, tree, **{"scale": SCALE} | options)
    output.backward(parts[3].to(output.dtype))
    return Result(output, query.grad, key.grad, value.grad)


def dense(
    parts: list[Tensor], forest: Forest, window: int | None = None, softcap: float | None = None, scale: float = SCALE
) -> Result:
    """Returns masked softmax attention, in double precision, who sees whom found by walking up the parents."""
    query, key, value, gradient = (part.detach().double() for part in parts)
    for part in (query, key, value):
        part.requires_grad_()
    groups = query.shape[1] // key.shape[1]
    logits = scale * query @ key.repeat_interleave(groups, 1).transpose(-1, -2)
    if softcap is not None:
        logits = softcap * (logits / softcap).tanh()
    weights = logits.masked_fill(~seen(forest, window), float("-inf")).softmax(-1)
    output = (weights @ value.repeat_interleave(groups, 1)).transpose(1, 2)
    output.backward(gradient)
    return Result(output, query.grad, key.grad, value.grad)


def assert_close(found: Result, expected: Result, tolerance: float = 2e-5) -> None:
    for name, one, other in zip(Result._fields, found, expected, strict=True):
        torch.testing.assert_close(
            one.double(), other, atol=tolerance, rtol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )
