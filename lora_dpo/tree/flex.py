"""Attention over a forest with FlexAttention, whose kernel skips the tiles in which nobody sees anybody.

Compiled for a GPU it has not run yet: the CPU checks the mask, the values and the gradients without the compiler, and
that the compiler meets new lengths and new trees without compiling again.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import flex_attention as flex

from lora_dpo.tree.tree import Tree

TILE = 128
_NEVER = torch.iinfo(torch.int32).max


def flex_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    tree: Tree,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Attends in one fused kernel, at a cost that follows the tiles in which somebody sees somebody.

    On a GPU the first two lengths are compiled for, the second one for all that follow. On the CPU, where
    FlexAttention has no backward pass, nothing is compiled.

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
    length, mask = query.shape[2], block_mask(tree, window)
    padding = mask.shape[-1] - length
    query, key, value = (F.pad(part, (0, 0, 0, padding)) for part in (query, key, value))
    attend = _attend if query.device.type == "cpu" else _compiled
    # As text: a float that changes becomes a symbol to the compiler, and the kernel wants its scale as a constant.
    output = attend(query, key, value, mask, repr(scale), None if softcap is None else repr(softcap))
    return output[:, :, :length].transpose(1, 2)


def block_mask(tree: Tree, window: int | None = None) -> flex.BlockMask:
    """Returns FlexAttention's mask of a tree, made once for all layers of the same window.

    The row is padded to whole tiles with nodes that see nothing but themselves. There are two tiles at least, because
    one is a special case to the compiler, and shorter rows another to the kernel.

    Args:
        tree: A forest of N nodes.
        window: Positions that a query sees, its own included; None is all.

    Returns:
        Shape (1, 1, M, M), where M is N padded. It costs O(N + (M / TILE)^2), and nothing waits for the device.
    """
    window = tree.effective(window)
    kind = ("flex", window)
    if kind not in tree.cache:
        tree.cache[kind] = _block_mask(tree, window)
    return tree.cache[kind]


def _block_mask(tree: Tree, window: int | None) -> flex.BlockMask:
    length = len(tree.subtree_end)
    padded = max(2, -(-length // TILE)) * TILE
    nodes = torch.arange(padded, device=tree.subtree_end.device)
    end = torch.cat([tree.subtree_end, nodes[length:] + 1]).int()
    depth = F.pad(tree.depth[0], (0, padded - length)).int()
    # The window hides a node from its descendants at this depth. A tensor in any case: one function for all masks.
    horizon = torch.full_like(depth, _NEVER) if window is None else depth + window

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (query < end[key]) & (depth[query] < horizon[key])

    # A node is seen from itself on without a gap, so the tiles that see some of a tile's nodes, or all of them, follow
    # from the last and from the first end of a subtree in it. With a window a tile may be named in vain, since its
    # extremes may belong to different branches; its elements are masked all the same.
    queries, keys = nodes[::TILE, None], nodes[::TILE]
    ends, depths, horizons = (part.view(-1, TILE) for part in (end, depth, horizon))
    some = (keys <= queries) & (queries < ends.amax(1)) & (depths.amin(1)[:, None] < horizons.amax(1))
    every = (keys < queries) & (queries + TILE <= ends.amin(1)) & (depths.amax(1)[:, None] < horizons.amin(1))
    return flex.BlockMask.from_kv_blocks(*_listed(some & ~every), *_listed(every), BLOCK_SIZE=TILE, mask_mod=visible)


def _listed(tiles: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the number of tiles in each row of a table, and their columns before all others."""
    columns = tiles.int().argsort(dim=-1, descending=True, stable=True)
    return tiles.sum(-1, dtype=torch.int32)[None, None], columns.int()[None, None]


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: flex.BlockMask, scale: str, softcap: str | None) -> Tensor:
    bend = None
    if softcap is not None:
        bound = float(softcap)

        def bend(score: Tensor, *_: Tensor) -> Tensor:
            return bound * torch.tanh(score / bound)

    return flex.flex_attention(query, key, value, score_mod=bend, block_mask=mask, scale=float(scale), enable_gqa=True)


_compiled = torch.compile(_attend)
