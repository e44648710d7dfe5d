"""Questions cut into chunks of pairs that travel together, with the tokens of every part of a chunk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lora_dpo.tree.forest import Index, build_forest
from lora_dpo.tree.pairs import PairTokens


@dataclass(frozen=True, slots=True)
class Chunk:
    """Pairs of one question that travel together.

    Attributes:
        pairs: Their rows in the data set.
        tokens: Distinct tokens of pairs i to k, k included, at [i, k], where i <= k; shape (pairs, pairs).
    """

    pairs: list[int]
    tokens: Index


def cut_question(members: list[int], pairs: Sequence[PairTokens], most: int, tokens: int | None) -> Iterator[Chunk]:
    """Cuts a question's pairs into consecutive chunks, each as large as it may be.

    Args:
        members: The question's pairs, as rows of the data set.
        pairs: The data set.
        most: Pairs that a chunk may have.
        tokens: Distinct tokens that a chunk may have, None for any number; a larger pair is a chunk of its own.
    """
    if len(members) == 1:  # most questions of most data sets: no forest is needed
        yield Chunk(members, np.array([[pairs[members[0]].distinct_tokens]]))
        return
    forest = build_forest([sequence for index in members for sequence in pairs[index].sequences])
    newest = np.full(len(forest), -1)  # the last pair so far that has each node
    start, size = 0, 0  # the chunk's first pair, and the chunk's tokens
    added: list[Index] = []  # for each pair of the chunk, what it adds to those before it, by the first one that counts
    for place, (chosen, rejected) in enumerate(zip(forest.paths[::2], forest.paths[1::2], strict=True)):
        shorter = min(len(chosen), len(rejected))
        shared = np.count_nonzero(chosen[:shorter] == rejected[:shorter])
        nodes = np.concatenate([chosen, rejected[shared:]])
        # A node is new where the first pair that counts comes after the last one that has it.
        new = np.bincount(np.maximum(newest[nodes] + 1 - start, 0), minlength=place - start + 1).cumsum()
        if place > start and (place - start == most or (tokens is not None and size + new[0] > tokens)):
            yield _chunk(members[start:place], added)
            start, size, added, new = place, 0, [], new[-1:]
        added.append(new)
        size += new[0]
        newest[nodes] = place
    yield _chunk(members[start:], added)


def _chunk(members: list[int], added: list[Index]) -> Chunk:
    tokens = np.zeros((len(members), len(members)), np.int64)
    for place, new in enumerate(added):
        tokens[: place + 1, place] = new
    return Chunk(members, tokens.cumsum(axis=1))
