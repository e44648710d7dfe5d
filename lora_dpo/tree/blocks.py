"""Cuts a forest's attention into rectangular blocks, so that unrelated branches cost nothing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lora_dpo.tree.forest import Forest, Index

OVERHEAD = 4096
"""What one more block costs, in query-key products: the price of some small kernel calls. Measured on two CPU cores
with benchmarks/attention.py; between 1000 and 16000 nothing changes by more than a few percent."""


_EMPTY = np.empty(0, np.int64)


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive nodes that are computed in one call.

    The queries `start..end` see the keys `path` (all ancestors of the block's first node, all of them visible to every
    query) and, by the tree's rule, each other; in a `chain` each node is the next one's parent.
    """

    start: int
    end: int
    path: Index
    chain: bool

    @property
    def cost(self) -> int:
        """Query-key products, and the overhead of a call."""
        size = self.end - self.start
        return OVERHEAD + size * (len(self.path) + size)

    def keys(self, window: int | None) -> Index:
        """Returns the nodes that some query of the block sees: ancestors within a sliding window, then the block."""
        path = self.path if window is None else self.path[max(0, len(self.path) - window + 1) :]
        return np.concatenate([path, np.arange(self.start, self.end)])


def chains(forest: Forest) -> list[Block]:
    """Returns the forest's unbranched pieces with their ancestors: the finest cut, without a masked-out product."""
    forks = np.bincount(forest.parent[forest.parent >= 0], minlength=max(len(forest), 1)) > 1
    starts = np.flatnonzero((forest.parent < 0) | forks[forest.parent])
    ends = np.append(starts[1:], len(forest))
    blocks: list[Block] = []
    ending_at: dict[int, Block] = {}  # a chain forks at its last node, which is the parent of the chains below it
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        above = ending_at.get(int(forest.parent[start]))
        path = _EMPTY if above is None else np.concatenate([above.path, np.arange(above.start, above.end)])
        blocks.append(Block(start, end, path, chain=True))
        ending_at[end - 1] = blocks[-1]
    return blocks


def plan_blocks(forest: Forest) -> list[Block]:
    """Returns blocks that cover every node once, in order, at about the least cost.

    A subtree is one block where it is so small that its masked products cost less than further calls; otherwise its
    stem is a block and its branches are planned each for itself. Small neighbours with the same ancestors share one.
    """
    planned: dict[int, list[Block]] = {}  # by a subtree's first node; children before parents
    for stem in reversed(chains(forest)):
        end = int(forest.subtree_end[stem.start])
        whole = Block(stem.start, end, stem.path, chain=stem.end == end)
        path = np.concatenate([stem.path, np.arange(stem.start, stem.end)])
        split = [stem, *_branches(forest, stem.end, end, path, planned)]
        planned[stem.start] = [whole] if whole.cost <= _cost(split) else split
    return _branches(forest, 0, len(forest), _EMPTY, planned)


def _branches(forest: Forest, start: int, end: int, path: Index, planned: dict[int, list[Block]]) -> list[Block]:
    """Plans the subtrees that lie side by side in start..end, below the same ancestors."""
    blocks: list[Block] = []
    while start < end:
        after = int(forest.subtree_end[start])
        own = planned.pop(start)
        last = blocks[-1] if blocks else None
        if last is not None and len(last.path) == len(path):
            merged = Block(last.start, after, path, chain=False)
            if merged.cost <= last.cost + _cost(own):
                blocks[-1] = merged
                start = after
                continue
        blocks += own
        start = after
    return blocks


def _cost(blocks: list[Block]) -> int:
    return sum(block.cost for block in blocks)
