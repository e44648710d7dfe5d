from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_dpo.tree.blocks import OVERHEAD, Block, chains, plan_blocks
from lora_dpo.tree.forest import Forest, build_forest
from tests.tree.forests import ancestors, children, forests, overhead, token_lists

# From "every chain is a block" to "one block for all".
overheads = st.sampled_from([0, 1, 5, 20, 50, 200, OVERHEAD])


def cost(blocks: list[Block], price: int) -> int:
    return sum(price + (b.end - b.start) * (len(b.path) + b.end - b.start) for b in blocks)


def planned(forest: Forest) -> list[Block]:
    return plan_blocks(forest, chains(forest))


def spans(blocks: list[Block]) -> list[tuple[int, int, list[int], bool]]:
    return [(block.start, block.end, block.path.tolist(), block.chain) for block in blocks]


def check(blocks: list[Block], forest: Forest) -> None:
    nodes = [node for block in blocks for node in range(block.start, block.end)]
    assert nodes == list(range(len(forest)))
    for block in blocks:
        path = ancestors(forest, block.start)
        assert block.path.tolist() == path
        for node in range(block.start, block.end):
            assert set(path) <= set(ancestors(forest, node))
            outside = set(ancestors(forest, node)) - set(path)
            assert all(block.start <= other < node for other in outside)
        is_chain = all(forest.parent[node] == node - 1 for node in range(block.start + 1, block.end))
        assert is_chain or not block.chain


@given(forest=forests())
def test_chains_are_the_unbranched_pieces(forest: Forest) -> None:
    found = chains(forest)
    check(found, forest)
    assert all(block.chain for block in found)
    starts = [n for n, parent in enumerate(forest.parent) if parent < 0 or len(children(forest, parent)) > 1]
    assert [block.start for block in found] == starts


@given(forest=forests(), price=overheads)
def test_a_plan_covers_the_forest_and_costs_no_more_than_chains(forest: Forest, price: int) -> None:
    with overhead(price):
        plan = planned(forest)
        check(plan, forest)
        assert sum(block.cost for block in plan) == cost(plan, price)
        assert cost(plan, price) <= cost(chains(forest), price)


@given(sequences=token_lists(), price=overheads)
def test_one_tree_costs_no_more_than_as_one_block(sequences: list[list[int]], price: int) -> None:
    forest = build_forest([[5], *([5, *sequence] for sequence in sequences)])
    with overhead(price):
        plan = planned(forest)
    assert cost(plan, price) <= price + len(forest) ** 2


def test_a_forest_costs_no_more_than_as_one_block() -> None:
    # As one block 49 + 16 * 16 = 305. The first tree alone costs 49 + 15 * 15 = 274, its three chains
    # 3 * 49 + 5 * 5 + 5 * 10 + 5 * 10 = 272; with the second tree, 49 + 1, that is 322.
    forest = build_forest([[1] * 10, [1] * 5 + [2] * 5, [3]])
    with overhead(49):
        assert cost(planned(forest), 49) <= 305


@given(sequences=token_lists(), price=overheads)
def test_no_run_of_trees_is_cheaper_as_one_block(sequences: list[list[int]], price: int) -> None:
    forest = build_forest(sequences)
    with overhead(price):
        plan = planned(forest)
    edges = [*forest.roots.tolist(), len(forest)]
    for i, start in enumerate(edges):
        for end in edges[i + 1 :]:
            within = [block for block in plan if start <= block.start and block.end <= end]
            if sum(block.end - block.start for block in within) == end - start:  # no block reaches out of the run
                assert cost(within, price) <= price + (end - start) ** 2


def test_no_tokens_are_no_blocks() -> None:
    assert chains(build_forest([])) == []
    assert planned(build_forest([[]])) == []


# A stem of 6 with two leaves of 5. Apart, the three cost 3p + 6 * 6 + 2 * 5 * 11; leaves that share a call save p and
# mask out 2 * 5 * 5 = 50; one block for all saves another p, and the stem's 6 queries see 10 keys too many, 60.
@pytest.mark.parametrize(
    ("price", "plan"),
    [
        (49, [(0, 6, [], True), (6, 11, [*range(6)], True), (11, 16, [*range(6)], True)]),
        (50, [(0, 6, [], True), (6, 16, [*range(6)], False)]),
        (59, [(0, 6, [], True), (6, 16, [*range(6)], False)]),
        (60, [(0, 16, [], False)]),
    ],
)
def test_a_known_plan(price: int, plan: list[tuple[int, int, list[int], bool]]) -> None:
    forest = build_forest([[1] * 6 + [2] * 5, [1] * 6 + [3] * 5])
    with overhead(price):
        assert spans(planned(forest)) == plan


def test_known_chains() -> None:
    # The second branch's path is no run of neighbours: the first branch lies in between.
    forest = build_forest([[1, 1, 2, 2], [1, 1, 3, 4], [1, 1, 3, 5], [6]])
    expected = [
        (0, 2, [], True), (2, 4, [0, 1], True), (4, 5, [0, 1], True), (5, 6, [0, 1, 4], True),
        (6, 7, [0, 1, 4], True), (7, 8, [], True),
    ]  # fmt: skip
    assert spans(chains(forest)) == expected
    with overhead(0):
        assert spans(planned(forest)) == expected


def test_many_trees_share_blocks_of_the_best_size() -> None:
    # n trees of 10 in one block cost 600 + 100 * n * n. Of twelve, six blocks of 2 cost 6 * 1000 and four of 3 cost
    # 4 * 1500, and nothing costs less: one after the other, as long as the next one pays, takes them by 4, for 6600.
    with overhead(600):
        assert cost(planned(build_forest([[i] * 10 for i in range(12)])), 600) == 6000
        # Ten: two by 3 and two by 2 cost 5000, and three by 3 with one left over 5200.
        assert cost(planned(build_forest([[i] * 10 for i in range(10)])), 600) == 5000


def test_a_single_chain_stays_one() -> None:
    forest = build_forest([[1, 2, 3], [1, 2]])
    assert spans(planned(forest)) == [(0, 3, [], True)]


@pytest.mark.parametrize(("beside", "expected"), [(32, [(0, 96)]), (33, [(0, 64), (64, 97)])])
def test_neighbours_share_a_call_where_it_pays(beside: int, expected: list[tuple[int, int]]) -> None:
    # Two trees of 64 and n tokens: 2 * 64 * n products are masked out, a call is worth 4096 of them: n = 32.
    forest = build_forest([[1] * 64, [2] * beside])
    assert [(block.start, block.end) for block in planned(forest)] == expected


def test_cost_by_hand() -> None:
    assert Block(3, 5, np.arange(3), chain=True).cost == 4096 + 2 * (3 + 2)


def test_keys_of_a_block() -> None:
    branch = chains(build_forest([[0, 0, 0, 1, 1], [0, 0, 0, 2]]))[1]
    assert branch.keys(None).tolist() == [0, 1, 2, 3, 4]
    assert branch.keys(3).tolist() == [1, 2, 3, 4]  # the first query sees two nodes above it
    assert branch.keys(1).tolist() == [3, 4]
    assert branch.keys(100).tolist() == [0, 1, 2, 3, 4]
