"""Attention over a forest with kernels for packed sequences of various lengths, chain by chain in one call.

The queries of an unbranched chain are consecutive nodes; their keys, the chain's ancestors and the chain, are gathered.
The chain is the end of its keys, so a causal mask that is aligned at the end, as FlashAttention's is, is the tree's.

The two kernels run on a GPU only and have not run yet; the CPU checks the sequences with a kernel of the tests.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lora_dpo.tree.kernels import Scores
from lora_dpo.tree.tree import Tree


@dataclass(frozen=True, slots=True)
class Sequences:
    """The chains of a tree as packed sequences.

    Attributes:
        keys: Nodes of all sequences' keys, one sequence after the other, shape (K,).
        query_starts: First query of each sequence, and N, shape (S + 1,), int32.
        key_starts: Place in `keys` of each sequence's first one, and K, shape (S + 1,), int32.
        most_queries: Length of the longest sequence's queries; a number, so that nothing waits for the device.
        most_keys: Length of the longest sequence's keys.
        window: Positions that a query sees, its own included; None is all.
    """

    keys: Tensor
    query_starts: Tensor
    key_starts: Tensor
    most_queries: int
    most_keys: int
    window: int | None

    @property
    def sides(self) -> tuple[int, int]:
        """Keys before and behind a query that it sees, -1 for all, as kernels take a window."""
        return (-1 if self.window is None else self.window - 1), 0


SequenceKernel = Callable[[Tensor, Tensor, Tensor, Sequences, Scores], Tensor]
"""Takes queries (N, heads, head_dim), keys and values (K, key_heads, head_dim), sequences, and how logits are made.
Returns the output, (N, heads, head_dim): query i of n sees the keys up to i + m - n of its sequence's m."""


def varlen_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    tree: Tree,
    *,
    kernel: SequenceKernel,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Attends to every chain's ancestors in one call; keys are repeated for each chain below them.

    Args:
        query: Shape (1, heads, N, head_dim), fp16 or bf16 for the kernels below.
        key: Shape (1, key_heads, N, head_dim); `heads` is a multiple of `key_heads`.
        value: Shape (1, key_heads, N, head_dim).
        tree: The forest of the row.
        kernel: What attends over packed sequences.
        scale: Factor of the logits.
        window: Positions that a query sees, its own included; None is all.
        softcap: Bound of the logits, None for none.

    Returns:
        Shape (1, N, heads, head_dim).
    """
    found = sequences(tree, window)
    query, key, value = (part[0].transpose(0, 1) for part in (query, key, value))
    gathered = (_Gather.apply(part, found.keys) for part in (key, value))
    return kernel(query, *gathered, found, Scores(scale, softcap))[None]


def sequences(tree: Tree, window: int | None = None) -> Sequences:
    """Returns the chains as packed sequences on the tree's device, made once for all layers of the same window."""
    window = tree.effective(window)
    kind = ("varlen", window)
    if kind not in tree.cache:
        device = tree.ids.device
        keys = [chain.keys(window) for chain in tree.chains]
        lengths = [chain.end - chain.start for chain in tree.chains], [len(part) for part in keys]
        tree.cache[kind] = Sequences(
            torch.from_numpy(np.concatenate(keys)).to(device, non_blocking=True),
            *(_starts(part).to(device, non_blocking=True) for part in lengths),
            *(max(part) for part in lengths),
            window,
        )
    return tree.cache[kind]


def keys_per_node(tree: Tree, window: int | None = None) -> float:
    """Returns how often a key is repeated on average: what gathering costs in memory."""
    window = tree.effective(window)
    kind = ("keys per node", window)
    if kind not in tree.cache:
        keys = sum(len(chain.keys(window)) for chain in tree.chains)
        tree.cache[kind] = keys / len(tree.subtree_end)
    return tree.cache[kind]


def flash_kernel() -> SequenceKernel | None:
    """Returns FlashAttention-2 (Dao 2023, arXiv:2307.08691), None where the package is not installed."""
    function = _function("flash_attn", "flash_attn_varlen_func", "window_size", "softcap")
    return None if function is None else functools.partial(_flash, function)


def torch_kernel() -> SequenceKernel | None:
    """Returns PyTorch's own attention over packed sequences, which has no softcap; None before PyTorch has it."""
    function = _function("torch.nn.attention.varlen", "varlen_attn", "window_size", "enable_gqa")
    return None if function is None else functools.partial(_torch, function)


def _flash(
    function: Callable[..., Tensor], query: Tensor, key: Tensor, value: Tensor, found: Sequences, scores: Scores
) -> Tensor:
    return function(
        query,
        key,
        value,
        cu_seqlens_q=found.query_starts,
        cu_seqlens_k=found.key_starts,
        max_seqlen_q=found.most_queries,
        max_seqlen_k=found.most_keys,
        softmax_scale=scores.scale,
        causal=True,
        window_size=found.sides,
        softcap=scores.softcap or 0.0,
    )


def _torch(
    function: Callable[..., Tensor], query: Tensor, key: Tensor, value: Tensor, found: Sequences, scores: Scores
) -> Tensor:
    if scores.softcap is not None:
        raise NotImplementedError("PyTorch's variable-length attention has no softcap")
    return function(
        query,
        key,
        value,
        found.query_starts,
        found.key_starts,
        found.most_queries,
        found.most_keys,
        scale=scores.scale,
        window_size=found.sides,
        enable_gqa=query.shape[1] != key.shape[1],
    )


@functools.cache
def _function(module: str, name: str, *options: str) -> Callable[..., Tensor] | None:
    """Returns a function if it can be imported and takes these options: its older versions do not."""
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        return None
    return function if inspect.signature(function).parameters.keys() >= set(options) else None


class _Gather(torch.autograd.Function):
    """Picks rows as `index_select` does, but sums their gradients in fp32: many chains add to one key."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.length = len(rows)
        return rows.index_select(0, index)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        total = gradient.new_zeros(ctx.length, *gradient.shape[1:], dtype=torch.float32)
        return total.index_add_(0, index, gradient.float()).to(gradient.dtype), None


def _starts(lengths: list[int]) -> Tensor:
    return torch.from_numpy(np.cumsum([0, *lengths], dtype=np.int32))
