"""From token sequences to a prefix forest: every distinct prefix is one node."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Index = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Forest:
    """Prefix trees of token sequences, their nodes in depth-first order.

    A node's descendants follow it without a gap, so node q sees node k (k is q itself or an ancestor) exactly when
    `k <= q < subtree_end[k]`: one vector describes the whole attention mask.

    Attributes:
        ids: Token of each node, shape (N,).
        depth: Distance from the node's root, which is the token's position, shape (N,).
        parent: The node before it in its sequences, -1 for a root, shape (N,).
        subtree_end: One past the node's last descendant, shape (N,).
        paths: For each input sequence, in the order given, the nodes that spell it.
    """

    ids: Index
    depth: Index
    parent: Index
    subtree_end: Index
    paths: tuple[Index, ...]

    def __len__(self) -> int:
        """Returns the number of nodes, which is the number of distinct prefixes."""
        return len(self.ids)

    @property
    def roots(self) -> Index:
        """The first node of each tree, in order."""
        return np.flatnonzero(self.parent < 0)


def build_forest(sequences: Sequence[Sequence[int]]) -> Forest:
    """Builds the prefix forest of token sequences, in time linear in their total length (but for one sort).

    Sorted lexicographically, the sequences are the forest's leaves from left to right: each one adds a node for every
    token behind the prefix that it shares with the sequence before it. The order of the input does not matter.

    Args:
        sequences: Token ids; any number of sequences, of any length. An empty one has an empty path.
    """
    tokens = [np.asarray(sequence, dtype=np.int64) for sequence in sequences]
    longest = max((len(sequence) for sequence in tokens), default=0)
    # Bytes of big-endian numbers compare like the numbers, and in C.
    order = sorted(range(len(tokens)), key=lambda i: tokens[i].astype(">u4").tobytes())
    ids, depths, parents, ends = [], [], [], []
    paths: list[Index] = [np.empty(0, np.int64)] * len(tokens)
    path = np.empty(longest, np.int64)  # nodes from the root to the newest leaf, by depth
    before = np.empty(0, np.int64)
    total = 0
    for i in order:
        sequence = tokens[i]
        shared = common_prefix(before, sequence)
        ends.append((path[shared : len(before)].copy(), total))
        new = len(sequence) - shared
        path[shared : len(sequence)] = np.arange(total, total + new)
        parent = np.arange(total - 1, total + new - 1)
        if new:
            parent[0] = path[shared - 1] if shared else -1
        ids.append(sequence[shared:])
        depths.append(np.arange(shared, len(sequence)))
        parents.append(parent)
        paths[i] = path[: len(sequence)].copy()
        before = sequence
        total += new
    subtree_end = np.full(total, total, np.int64)
    for closed, end in ends:
        subtree_end[closed] = end
    return Forest(_joined(ids), _joined(depths), _joined(parents), subtree_end, tuple(paths))


def common_prefix(a: Index, b: Index) -> int:
    """Returns how many tokens two sequences share at their beginnings."""
    shorter = min(len(a), len(b))
    differs = a[:shorter] != b[:shorter]
    first = int(differs.argmax()) if shorter else 0
    return first if shorter and differs[first] else shorter


def _joined(parts: list[Index]) -> Index:
    return np.concatenate(parts).astype(np.int64, copy=False) if parts else np.empty(0, np.int64)
