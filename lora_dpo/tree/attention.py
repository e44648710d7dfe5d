"""Attention over a forest: every query sees its ancestors and itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lora_dpo.tree.kernels import Scores, attend, attend_backward
from lora_dpo.tree.precision import wide_dtype
from lora_dpo.tree.tree import Piece, Tree


def block_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    tree: Tree,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Attends block by block; works on every device, at a cost that unrelated branches do not add to.

    Args:
        query: Shape (1, heads, N, head_dim).
        key: Shape (1, key_heads, N, head_dim); `heads` is a multiple of `key_heads`.
        value: Shape (1, key_heads, N, head_dim).
        tree: The forest of the row.
        scale: Factor of the logits.
        window: Positions that a query sees, its own included; None is all.
        softcap: Bound of the logits, None for none.

    Returns:
        Shape (1, N, heads, head_dim).
    """
    return _BlockAttention.apply(query, key, value, tree, window, Scores(scale, softcap))


class _BlockAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, tree: Tree, window: int | None, scores: Scores
    ) -> Tensor:
        heads, length, size = query.shape[1:]
        cuts = tree.cuts(window, heads // key.shape[1])
        output = query.new_empty(1, length, heads, size)
        normaliser = query.new_empty(heads, length, dtype=wide_dtype(query))
        for cut in cuts:
            parts = [_attend(query[0, :, cut.queries], key[0], value[0], piece, scores) for piece in cut.pieces]
            merged, normaliser[:, cut.queries] = _merge(parts)
            output[0, cut.queries] = merged.transpose(0, 1)
        ctx.save_for_backward(query, key, value, output, normaliser)
        ctx.cuts, ctx.scores = cuts, scores
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output, normaliser = ctx.saved_tensors
        of_query = torch.empty_like(query)
        # Many blocks add to one key, so the sums are not kept in half precision.
        of_key, of_value = (torch.zeros_like(part, dtype=wide_dtype(part)) for part in (key, value))
        for cut in ctx.cuts:
            rows = [part[0, :, cut.queries] for part in (query, output.transpose(1, 2), gradient.transpose(1, 2))]
            rows.append(normaliser[:, cut.queries])
            of_rows = []
            for piece in cut.pieces:
                rows_part, key_part, value_part = _attend_backward(rows, key[0], value[0], piece, ctx.scores)
                of_rows.append(rows_part)
                _add(of_key[0], piece.keys, key_part)
                _add(of_value[0], piece.keys, value_part)
            of_query[0, :, cut.queries] = sum(of_rows)
        return of_query, of_key.to(key.dtype), of_value.to(value.dtype), None, None, None


def _attend(query: Tensor, key: Tensor, value: Tensor, piece: Piece, scores: Scores) -> tuple[Tensor, Tensor]:
    """Returns output (heads, n, size) and normaliser (heads, n) of n queries over one piece of the keys."""
    key, value = _pick(key, query, piece), _pick(value, query, piece)
    output, normaliser = attend(_pack(query, key), key, value, piece.mask, scores, causal=piece.causal)
    return output.reshape(query.shape), normaliser.reshape(query.shape[:2])


def _attend_backward(
    rows: list[Tensor], key: Tensor, value: Tensor, piece: Piece, scores: Scores
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the gradients of n queries (heads, n, size) and of one piece of the keys and values.

    Args:
        rows: The queries, the merged output and its gradient, each (heads, n, size), and the merged normaliser.
        key: Shape (key_heads, N, size).
        value: Shape (key_heads, N, size).
        piece: Which keys.
        scores: Scale and softcap.
    """
    query, *_, normaliser = rows
    picked, values = _pick(key, query, piece), _pick(value, query, piece)
    packed = [_pack(part, picked) for part in rows[:3]]
    of_query, *of_others = attend_backward(
        *packed, normaliser.reshape(packed[0].shape[:2]), picked, values, piece.mask, scores, causal=piece.causal
    )
    # Where keys were repeated for the heads that share them, their gradients are summed.
    of_key, of_value = (part.reshape(len(key), -1, *part.shape[1:]).sum(1) for part in of_others)
    return of_query.reshape(query.shape), of_key, of_value


def _merge(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Joins attention over disjoint keys: each output counts by its part of the normaliser."""
    if len(parts) == 1:
        return parts[0]
    normaliser = torch.logsumexp(torch.stack([part for _, part in parts]), 0)
    outputs = [output * (part - normaliser).exp_().to(output.dtype)[..., None] for output, part in parts]
    return sum(outputs), normaliser


def _pick(part: Tensor, query: Tensor, piece: Piece) -> Tensor:
    picked = part[:, piece.keys] if isinstance(piece.keys, slice) else part.index_select(1, piece.keys)
    # A causal kernel wants as many rows as keys, so heads that share a key cannot be packed as rows of one matrix.
    return picked.repeat_interleave(len(query) // len(part), 0) if piece.causal else picked


def _pack(rows: Tensor, key: Tensor) -> Tensor:
    """Returns (heads, n, size) as (key_heads, groups * n, size)."""
    return rows.reshape(len(key), -1, rows.shape[-1])


def _add(total: Tensor, keys: slice | Tensor, part: Tensor) -> None:
    if isinstance(keys, slice):
        total[:, keys] += part
    else:
        total.index_add_(1, keys, part.to(total.dtype))
