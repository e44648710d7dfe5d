"""Forests that Hypothesis makes up, and a slow second opinion on who sees whom."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from lora_dpo.tree import blocks, tree
from lora_dpo.tree.forest import Forest, build_forest

TOKENS = (0, 1, 256, 70_000)  # 256 and 70 000 come before 1 where bytes are compared in the wrong order


@st.composite
def token_lists(draw: st.DrawFn, min_size: int = 0, max_size: int = 7, longest: int = 5) -> list[list[int]]:
    """Draws sequences that go on from a beginning of an earlier one: duplicates, prefixes, empty ones, lone tokens."""
    found: list[list[int]] = []
    for _ in range(draw(st.integers(min_size, max_size))):
        earlier = draw(st.sampled_from(found)) if found else []
        shared = draw(st.integers(0, len(earlier)))
        found.append(earlier[:shared] + draw(st.lists(st.sampled_from(TOKENS), max_size=longest)))
    return found


@st.composite
def forests(draw: st.DrawFn) -> Forest:
    """Draws a forest of at least one node."""
    return build_forest(draw(token_lists(min_size=1).filter(any)))


def long_forest(stem: int) -> Forest:
    """Trees of two roots, whose branches are longer than a tile, or share one."""
    beginning = [9] * stem
    return build_forest(
        [beginning + [1] * 160, beginning + [2] * 40, beginning[: stem // 2] + [3] * 60, [4] * 50, [4] * 30 + [5] * 9]
    )


def ancestors(forest: Forest, node: int) -> list[int]:
    """Returns the nodes from the root to the node, the node left out, found by walking up its parents."""
    found: list[int] = []
    while (node := int(forest.parent[node])) >= 0:
        found.append(node)
    return found[::-1]


def seen(forest: Forest, window: int | None = None) -> Tensor:
    """Returns which keys (columns) each query (row) sees, found by walking up its parents."""
    visible = torch.zeros(len(forest), len(forest), dtype=torch.bool)
    for query in range(len(forest)):
        line = [*ancestors(forest, query), query]
        visible[query, line if window is None else line[-window:]] = True
    return visible


def children(forest: Forest, node: int) -> list[int]:
    """Returns the node's children, in order."""
    return np.flatnonzero(forest.parent == node).tolist()


@contextmanager
def overhead(products: int) -> Iterator[None]:
    """Prices a call at so many query-key products, wherever the price is known."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "OVERHEAD", products)
        patch.setattr(tree, "OVERHEAD", products)
        yield
