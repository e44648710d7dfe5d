from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lora_dpo.tree.forest import Forest, build_forest
from lora_dpo.tree.rows import lay_out, pack
from lora_dpo.tree.tree import Tree
from tests.tree.forests import forests, seen

sizes = st.lists(st.integers(1, 30), max_size=12)


@given(sizes=sizes, capacity=st.integers(1, 40))
def test_every_tree_is_in_one_row_and_no_row_is_too_long(sizes: list[int], capacity: int) -> None:
    rows = pack(sizes, capacity)
    assert sorted(tree for row in rows for tree in row) == list(range(len(sizes)))
    lengths = [sum(sizes[tree] for tree in row) for row in rows]
    most = max([capacity, *sizes])
    assert all(0 < length <= most for length in lengths)
    # No two rows could be one: what opened a later row had no room in an earlier one.
    assert all(one + other > most for i, one in enumerate(lengths) for other in lengths[:i])


@pytest.mark.parametrize(
    ("sizes", "capacity", "rows"),
    [
        ([], 8, []),
        ([3, 5, 4], 8, [[1, 0], [2]]),  # 5 and 3 are full, 4 is alone
        ([2, 6, 5, 3], 8, [[1, 0], [2, 3]]),
        ([1, 5, 6], 8, [[2, 0], [1]]),  # into the fullest row that has room
        ([9, 1, 8], 4, [[0], [2, 1]]),  # the largest tree says how long a row may be
        ([2, 2, 2], 2, [[0], [1], [2]]),
    ],
)
def test_packed_by_hand(sizes: list[int], capacity: int, rows: list[list[int]]) -> None:
    assert pack(sizes, capacity) == rows


@given(forest=forests(), capacity=st.integers(1, 20))
def test_rows_hold_the_forest(forest: Forest, capacity: int) -> None:
    rows = lay_out(Tree.of(forest), capacity)
    count, length = rows.ids.shape
    assert rows.ids.flatten()[rows.place].tolist() == forest.ids.tolist()
    assert rows.depth.flatten()[rows.place].tolist() == forest.depth.tolist()
    assert len(set(rows.place.tolist())) == len(forest)
    padding = torch.ones(count * length, dtype=torch.bool).index_fill(0, rows.place, False)
    assert not rows.ids.flatten()[padding].any()
    assert not rows.depth.flatten()[padding].any()
    ends = [*forest.roots.tolist(), len(forest)]
    assert length <= max([capacity, *(end - start for start, end in zip(ends, ends[1:], strict=False))])
    # Every pair of places at once: those of one row see each other as the forest says, those of two rows never.
    visible = torch.zeros(count, length, count, length, dtype=torch.bool)
    for row in range(count):
        visible[row, :, row] = rows.visible[row, 0]
    visible = visible.reshape(count * length, count * length)
    assert rows.visible.shape == (count, 1, length, length)
    assert torch.equal(visible[rows.place][:, rows.place], seen(forest))
    assert torch.equal(visible[padding], torch.eye(count * length, dtype=torch.bool)[padding])
    assert not visible[rows.place][:, padding].any()


def test_laid_out_by_hand() -> None:
    # Trees of 2, 3 (a fork) and 1 nodes in rows of 4: the second with the third, and the first with padding.
    rows = lay_out(Tree.of(build_forest([[1, 2], [3, 4], [3, 5], [6]])), capacity=4)
    assert rows.ids.tolist() == [[3, 4, 5, 6], [1, 2, 0, 0]]
    assert rows.depth.tolist() == [[0, 1, 1, 0], [0, 1, 0, 0]]
    assert rows.place.tolist() == [4, 5, 0, 1, 2, 3]
    assert rows.visible[:, 0].int().tolist() == [
        [[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1]],
        [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]],
    ]


def test_a_row_holds_512_nodes_where_nothing_else_is_said() -> None:
    trees = Tree.of(build_forest([[number] * 128 for number in range(5)]))
    assert lay_out(trees).ids.shape == (2, 512)
