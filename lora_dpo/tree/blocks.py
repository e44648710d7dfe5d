"""Cuts a forest's attention into rectangular blocks, so that unrelated branches cost nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lora_dpo.tree.forest import Forest, Index

OVERHEAD = 4096
"""What one more block costs, in query-key products: the price of some small kernel calls. Nothing depends on it much:
from 1000 to 16000, attention over 64 pairs took the same time on two CPU cores, within a few percent."""

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
        return _block_cost(self.end - self.start, len(self.path))

    def keys(self, window: int | None) -> Index:
        """Returns the nodes that some query of the block sees: ancestors within a sliding window, then the block."""
        path = self.path if window is None else self.path[max(0, len(self.path) - window + 1) :]
        return np.concatenate([path, np.arange(self.start, self.end)])


def chains(forest: Forest) -> list[Block]:
    """Returns the forest's unbranched pieces with their ancestors: the finest cut, without a masked-out product."""
    if not len(forest):
        return []
    forks = np.bincount(forest.parent[forest.parent >= 0], minlength=len(forest)) > 1
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


def plan_blocks(forest: Forest, stems: Sequence[Block]) -> list[Block]:
    """Returns blocks that cover every node once, in order, at about the least cost.

    A subtree is one block where it is so small that its masked products cost less than further calls; otherwise its
    stem is a block and its branches are planned each for itself. Small neighbours with the same ancestors share one.

    Args:
        forest: The forest.
        stems: Its `chains`.
    """
    planned: dict[int, list[Block]] = {}  # by a subtree's first node; children before parents
    for stem in reversed(stems):
        end = int(forest.subtree_end[stem.start])
        whole = Block(stem.start, end, stem.path, chain=stem.end == end)
        path = np.concatenate([stem.path, np.arange(stem.start, stem.end)])
        split = [stem, *_branches(forest, stem.end, end, path, planned)]
        planned[stem.start] = [whole] if whole.cost <= _cost(split) else split
    return _branches(forest, 0, len(forest), _EMPTY, planned)


def _branches(forest: Forest, start: int, end: int, path: Index, planned: dict[int, list[Block]]) -> list[Block]:
    """Plans the subtrees that lie side by side in start..end, below the same ancestors.

    Of all ways in which neighbours can share blocks, the cheapest: each subtree is planned for itself, or in one block
    with those before it, up to where such a block alone costs more than the best plan so far. It does so soon, as its
    cost grows with the square of its length.
    """
    edges, costs = [start], [0]  # where the first n subtrees end, and the cost of their best plan
    last: list[tuple[int, list[Block]]] = []  # that plan's last step: how many subtrees come before it, and its blocks
    while edges[-1] < end:
        own = planned.pop(edges[-1])
        edges.append(int(forest.subtree_end[edges[-1]]))
        best, step = costs[-1] + _cost(own), (len(last), own)
        for before in reversed(range(len(last))):
            shared = _block_cost(edges[-1] - edges[before], len(path))
            if shared > best:
                break
            if costs[before] + shared <= best:
                best, step = costs[before] + shared, (before, [Block(edges[before], edges[-1], path, chain=False)])
        costs.append(best)
        last.append(step)
    steps, count = [], len(last)
    while count:
        count, blocks = last[count - 1]
        steps.append(blocks)
    return [block for blocks in reversed(steps) for block in blocks]


def _block_cost(size: int, above: int) -> int:
    return OVERHEAD + size * (above + size)


def _cost(blocks: list[Block]) -> int:
    return sum(block.cost for block in blocks)
