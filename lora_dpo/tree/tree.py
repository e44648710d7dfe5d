"""A forest as tensors, with what attention needs of it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from lora_dpo.tree.blocks import OVERHEAD, Block, chains, plan_blocks
from lora_dpo.tree.forest import Forest, Index


@dataclass(frozen=True, slots=True)
class Tree:
    """One row that holds all trees of a micro-batch, without padding.

    Attributes:
        ids: Tokens, shape (1, N).
        depth: Positions, shape (1, N).
        subtree_end: One past each node's last descendant, shape (N,).
        blocks: How block-wise attention is cut.
        chains: The unbranched pieces, which kernels for sequences of various lengths take one by one.
        depth_span: Nodes of the longest path.
        cache: What is derived on first use and shared by all layers: masks, by kind.
    """

    ids: Tensor
    depth: Tensor
    subtree_end: Tensor
    blocks: tuple[Block, ...]
    chains: tuple[Block, ...]
    depth_span: int
    cache: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, forest: Forest) -> Tree:
        """Returns the forest's tensors, on the CPU."""
        stems = chains(forest)
        return cls(
            torch.from_numpy(forest.ids)[None],
            torch.from_numpy(forest.depth)[None],
            torch.from_numpy(forest.subtree_end),
            tuple(plan_blocks(forest, stems)),
            tuple(stems),
            int(forest.depth.max(initial=-1)) + 1,
        )

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Tree:
        """Returns the tree on a device; Accelerate calls this as it does a tensor's."""
        if self.ids.device == torch.device(device):
            return self
        moved = {
            name: getattr(self, name).to(device, non_blocking=non_blocking) for name in ("ids", "depth", "subtree_end")
        }
        return replace(self, **moved, cache={})

    def pin_memory(self) -> Tree:
        """Returns the tree in page-locked memory; the data loader calls this as it does a tensor's."""
        pinned = {name: getattr(self, name).pin_memory() for name in ("ids", "depth", "subtree_end")}
        return replace(self, **pinned, cache={})

    def visible(self, queries: Tensor, keys: Tensor, window: int | None = None) -> Tensor:
        """Returns which keys each query may see: itself and its ancestors, no further back than a sliding window.

        Args:
            queries: Node indices, shape (Q,).
            keys: Node indices, shape (K,).
            window: Number of positions that a query sees, its own included; None is all.

        Returns:
            Booleans, shape (Q, K).
        """
        allowed = (keys <= queries[:, None]) & (queries[:, None] < self.subtree_end[keys])
        if window is not None:
            depth = self.depth[0]
            allowed &= depth[queries][:, None] - depth[keys] < window
        return allowed

    def dense_mask(self, window: int | None = None) -> Tensor:
        """Returns the whole mask, shape (N, N): quadratic, for tests and for kernels that take nothing else."""
        nodes = torch.arange(self.ids.shape[1], device=self.ids.device)
        return self.visible(nodes, nodes, window)

    def cuts(self, window: int | None, groups: int) -> list[Cut]:
        """Returns the blocks with their keys and masks, made once for all layers of the same window.

        Args:
            window: Sliding window, None for full attention.
            groups: Query heads that share a key head; the mask's rows are repeated for them.
        """
        window = self.effective(window)
        kind = ("cuts", window, groups)
        if kind not in self.cache:
            self.cache[kind] = [self._cut(block, window, groups) for block in self.blocks]
        return self.cache[kind]

    def effective(self, window: int | None) -> int | None:
        """Returns the sliding window, or None where no path is long enough for it to hide anything."""
        return None if window is None or window >= self.depth_span else window

    def _cut(self, block: Block, window: int | None, groups: int) -> Cut:
        size, device = block.end - block.start, self.ids.device
        keys = block.keys(window)
        path, own = keys[:-size], slice(block.start, block.end)
        unmasked = block.chain and (window is None or len(keys) <= window)
        if unmasked and len(path) == 0:
            return Cut(own, (Piece(own, None, causal=True),))
        if unmasked and size * size > 2 * OVERHEAD:  # the masked triangle would cost more than a second call
            return Cut(own, (Piece(self._keys(path), None, causal=False), Piece(own, None, causal=True)))
        nodes = torch.from_numpy(keys).to(device)
        hidden = ~self.visible(nodes[len(path) :], nodes, window)
        mask = torch.zeros(hidden.shape, device=device).masked_fill_(hidden, float("-inf")).repeat(groups, 1)
        return Cut(own, (Piece(self._keys(keys), mask, causal=False),))

    def _keys(self, nodes: Index) -> slice | Tensor:
        if nodes[-1] - nodes[0] == len(nodes) - 1:  # ascending without a gap: a view instead of a copy
            return slice(int(nodes[0]), int(nodes[-1]) + 1)
        return torch.from_numpy(nodes).to(self.ids.device)


@dataclass(frozen=True, slots=True)
class Piece:
    """Some of the keys that a block's queries see.

    Attributes:
        keys: The keys' nodes.
        mask: Added to the logits, 0 or -inf, shape (groups * queries, keys); None hides nothing.
        causal: Whether query i sees the keys up to i, in place of a mask.
    """

    keys: slice | Tensor
    mask: Tensor | None
    causal: bool


@dataclass(frozen=True, slots=True)
class Cut:
    """A block for one kind of layer: its queries' nodes, and their keys in pieces that are attended to one by one."""

    queries: slice
    pieces: tuple[Piece, ...]
