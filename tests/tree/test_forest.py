from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_dpo.tree.forest import build_forest
from tests.tree.forests import ancestors, children, seen, token_lists


def test_a_known_forest() -> None:
    # 1 -> 2 -> 3, 1 -> 4 and a tree of its own, 5; [1, 2] ends inside another sequence.
    forest = build_forest([[5], [1, 2, 3], [], [1, 4], [1, 2]])
    assert forest.ids.tolist() == [1, 2, 3, 4, 5]
    assert forest.depth.tolist() == [0, 1, 2, 1, 0]
    assert forest.parent.tolist() == [-1, 0, 1, 0, -1]
    assert forest.subtree_end.tolist() == [4, 3, 3, 4, 5]
    assert [path.tolist() for path in forest.paths] == [[4], [0, 1, 2], [], [0, 3], [0, 1]]
    assert forest.roots.tolist() == [0, 4]
    assert len(forest) == 5


@pytest.mark.parametrize("sequences", [[], [[]], [[], []]])
def test_no_tokens(sequences: list[list[int]]) -> None:
    forest = build_forest(sequences)
    assert len(forest) == len(forest.roots) == 0
    assert [path.tolist() for path in forest.paths] == sequences
    for part in (forest.ids, forest.depth, forest.parent, forest.subtree_end, *forest.paths):
        assert part.dtype == np.int64
        assert part.shape == (0,)


@given(sequences=token_lists())
def test_every_path_reads_back_its_sequence(sequences: list[list[int]]) -> None:
    forest = build_forest(sequences)
    assert [forest.ids[path].tolist() for path in forest.paths] == sequences
    for path in filter(len, forest.paths):
        assert path.tolist() == [*ancestors(forest, path[-1]), path[-1]]


@given(sequences=token_lists())
def test_every_distinct_prefix_is_one_node(sequences: list[list[int]]) -> None:
    forest = build_forest(sequences)
    prefixes = {tuple(sequence[: end + 1]) for sequence in sequences for end in range(len(sequence))}
    assert len(forest) == len(prefixes)
    nodes = range(len(forest))
    assert {tuple(forest.ids[[*ancestors(forest, node), node]].tolist()) for node in nodes} == prefixes
    edges = list(zip(forest.parent.tolist(), forest.ids.tolist(), strict=True))
    assert len(set(edges)) == len(edges)


@given(sequences=token_lists())
def test_depth_counts_the_ancestors(sequences: list[list[int]]) -> None:
    forest = build_forest(sequences)
    for node, parent in enumerate(forest.parent.tolist()):
        assert forest.depth[node] == (forest.depth[parent] + 1 if parent >= 0 else 0)
    assert forest.roots.tolist() == children(forest, -1)


@given(sequences=token_lists())
def test_nodes_are_in_depth_first_order(sequences: list[list[int]]) -> None:
    forest = build_forest(sequences)
    ends = forest.subtree_end.tolist()
    for node, parent in enumerate(forest.parent.tolist()):
        assert parent < node
        below = [other for other in range(len(forest)) if node in ancestors(forest, other)]
        assert below == list(range(node + 1, ends[node]))
        assert ends[node] <= (ends[parent] if parent >= 0 else len(forest))
    for node in range(-1, len(forest)):
        tokens = forest.ids[children(forest, node)].tolist()
        assert tokens == sorted(tokens)


@given(sequences=token_lists())
def test_one_vector_describes_the_mask(sequences: list[list[int]]) -> None:
    forest = build_forest(sequences)
    keys = np.arange(len(forest))
    queries = keys[:, None]
    assert np.array_equal((keys <= queries) & (queries < forest.subtree_end), seen(forest).numpy())


@given(sequences=token_lists(), rng=st.randoms(use_true_random=False))
def test_the_order_of_the_input_does_not_matter(sequences: list[list[int]], rng: random.Random) -> None:
    order = rng.sample(range(len(sequences)), len(sequences))
    forest, again = build_forest(sequences), build_forest([sequences[i] for i in order])
    for name in ("ids", "depth", "parent", "subtree_end"):
        assert np.array_equal(getattr(again, name), getattr(forest, name)), name
    assert [path.tolist() for path in again.paths] == [forest.paths[i].tolist() for i in order]


def test_arrays_and_tuples_are_sequences_too() -> None:
    forest = build_forest([np.array([7, 8], np.int32), (7, 9), np.array([], np.int64)])
    assert forest.ids.tolist() == [7, 8, 9]
    assert [path.tolist() for path in forest.paths] == [[0, 1], [0, 2], []]


def test_paths_do_not_share_memory() -> None:
    forest = build_forest([[1, 2], [1, 2], [1, 3]])
    forest.paths[0][:] = -5
    assert [path.tolist() for path in forest.paths[1:]] == [[0, 1], [0, 2]]
