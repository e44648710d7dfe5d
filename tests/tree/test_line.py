from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lora_dpo.tree.chunks import cut_question
from lora_dpo.tree.line import Line
from lora_dpo.tree.pairs import PairTokens
from tests.tree.preferences import data_sets, distinct_tokens, entangled


def lined_up(pairs: list[PairTokens]) -> tuple[list[PairTokens], Line]:
    """Returns the pairs question by question, and their line."""
    questions = dict.fromkeys(pair.group for pair in pairs)
    members = [[i for i, pair in enumerate(pairs) if pair.group == question] for question in questions]
    chunks = [chunk for group in members for chunk in cut_question(group, pairs, len(pairs), None)]
    return [pairs[index] for chunk in chunks for index in chunk.pairs], Line(chunk.tokens for chunk in chunks)


def singles(*tokens: int) -> Line:
    return Line(np.array([[count]]) for count in tokens)


def largest(line: Line, edges: list[int]) -> int:
    return max((line.tokens(start, end) for start, end in pairwise(edges) if end - start > 1), default=0)


lines = data_sets(max_size=9) | entangled()


@given(pairs=lines)
def test_tokens_of_every_run(pairs: list[PairTokens]) -> None:
    pairs, line = lined_up(pairs)
    assert len(line) == len(pairs)
    for start in range(len(pairs)):
        for end in range(start + 1, len(pairs) + 1):
            assert line.tokens(start, end) == distinct_tokens(pairs[start:end])


@given(pairs=lines, most=st.integers(0, 80))
def test_the_longest_run_within_a_budget(pairs: list[PairTokens], most: int) -> None:
    pairs, line = lined_up(pairs)
    for start in range(len(line)):
        ends = [end for end in range(start + 1, len(line) + 1) if line.tokens(start, end) <= most]
        assert line.furthest(start, most) == max(ends, default=start + 1)


@given(pairs=lines, data=st.data())
def test_no_other_cut_has_a_smaller_largest_part(pairs: list[PairTokens], data: st.DataObject) -> None:
    _, line = lined_up(pairs)
    parts = data.draw(st.integers(1, len(line)))
    edges = line.cut(parts)
    assert edges[0] == 0 and edges[-1] == len(line) and len(edges) == parts + 1
    assert all(start < end for start, end in pairwise(edges))
    others = ([0, *inner, len(line)] for inner in combinations(range(1, len(line)), parts - 1))
    assert largest(line, edges) == min(largest(line, other) for other in others)


def test_cuts_by_hand() -> None:
    assert singles(20, 30, 30, 20).cut(2) == [0, 2, 4]
    assert singles(20, 30, 30, 20).cut(3) == [0, 1, 2, 4]  # 20, 30 and 50, not 20, 60 and 20
    assert singles(5).cut(1) == [0, 1]
    # Two parts of a question of 4 pairs: the prompt of 30 counts in both, so that 32 + 2 and 32 + 2 it is.
    shared = np.array([[32, 34, 36, 38], [0, 32, 34, 36], [0, 0, 32, 34], [0, 0, 0, 32]])
    assert Line([shared]).cut(2) == [0, 2, 4]


def test_parts_that_are_not_the_largest_are_even_as_well() -> None:
    assert singles(*[1] * 10).cut(4) == [0, 2, 4, 7, 10]
    # The first pair cannot be cut; the others need not be as large as it is.
    assert singles(100, *[1] * 9).cut(4) == [0, 1, 4, 7, 10]
