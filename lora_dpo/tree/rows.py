"""Trees packed into rows, for models whose own attention wants one mask for a whole row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lora_dpo.tree.tree import Tree


def pack(sizes: Sequence[int], capacity: int) -> list[list[int]]:
    """Puts trees into rows, largest first, each into the fullest row that still has room (best fit decreasing).

    Rows are no longer than the capacity or the largest tree, so that a row's mask, quadratic in its length, grows with
    the trees and not with the batch.

    Args:
        sizes: Nodes of each tree.
        capacity: Nodes that a row should hold.

    Returns:
        The trees of each row.
    """
    longest = max([capacity, *sizes])
    rows: list[list[int]] = []
    room: list[int] = []
    for tree in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        fitting = [row for row in range(len(rows)) if room[row] >= sizes[tree]]
        row = min(fitting, key=room.__getitem__, default=len(rows))
        if row == len(rows):
            rows.append([])
            room.append(longest)
        rows[row].append(tree)
        room[row] -= sizes[tree]
    return rows


@dataclass(frozen=True, slots=True)
class Rows:
    """A forest laid out in padded rows.

    Attributes:
        ids: Tokens, shape (rows, L); 0 in the padding.
        depth: Positions, shape (rows, L); 0 in the padding.
        visible: Which keys each query sees, shape (rows, 1, L, L); padding sees itself.
        place: Where each node is in the flattened rows, shape (N,).
    """

    ids: Tensor
    depth: Tensor
    visible: Tensor
    place: Tensor


def lay_out(tree: Tree, capacity: int = 512) -> Rows:
    """Lays a forest out in rows.

    Args:
        tree: The forest.
        capacity: Nodes that a row should hold; a larger tree makes larger rows.
    """
    depth = tree.depth[0]
    starts = (depth == 0).nonzero()[:, 0].tolist()
    ends = [*starts[1:], len(depth)]
    rows = pack([end - start for start, end in zip(starts, ends, strict=True)], capacity)
    spans = [np.concatenate([np.arange(starts[tree], ends[tree]) for tree in row]) for row in rows]
    nodes = np.full((len(rows), max(map(len, spans))), -1)
    for row, span in zip(nodes, spans, strict=True):
        row[: len(span)] = span
    at = torch.from_numpy(nodes).to(depth.device)
    real = at >= 0
    index = at.clamp(min=0)
    query, key = index[:, :, None], index[:, None, :]
    visible = (key <= query) & (query < tree.subtree_end[key]) & real[:, :, None] & real[:, None, :]
    visible |= torch.eye(at.shape[1], dtype=torch.bool, device=at.device) & ~real[:, :, None]
    place = torch.empty_like(depth)
    place[at[real]] = real.flatten().nonzero()[:, 0]
    return Rows(tree.ids[0][index] * real, depth[index] * real, visible[:, None], place)
