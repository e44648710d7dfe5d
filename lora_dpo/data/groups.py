"""Makes sure that one question is one group, whatever a file's own group column says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from lora_dpo.data.pair import Asked, group_of

T = TypeVar("T", bound=Asked)


def merge_groups(pairs: Sequence[T]) -> list[T]:
    """Returns the pairs with groups that share a prompt made one, so that no prompt can be on two sides of a split.

    Groups are merged transitively (union-find); a merged group takes the name that sorts first.

    Args:
        pairs: Pairs or examples whose groups are prompts' hashes, or names from a column of the file.
    """
    parent: dict[tuple[str, str], tuple[str, str]] = {}

    def root(node: tuple[str, str]) -> tuple[str, str]:
        parent.setdefault(node, node)
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for pair in pairs:
        group, prompt = root(("group", pair.group)), root(("prompt", group_of(pair.prompt)))
        parent[max(group, prompt)] = min(group, prompt)
    return [replace(pair, group=root(("group", pair.group))[1]) for pair in pairs]
