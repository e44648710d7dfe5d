from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.attention import flex_attention as torch_flex
from torch.nn.attention.flex_attention import BlockMask, create_mask

from lora_dpo.tree import flex
from lora_dpo.tree.flex import block_mask, flex_attention
from lora_dpo.tree.forest import Forest, build_forest
from lora_dpo.tree.tree import Tree
from tests.tree.dense import FORKED, HEADS, SCALE, assert_close, attended, dense, inputs
from tests.tree.forests import forests, long_forest, seen

WINDOWS = [None, 1, 2, 3, 7, 50]


@contextmanager
def tiles_of(size: int) -> Iterator[None]:
    """Makes tiles small, so that small forests have many; no kernel takes them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flex, "TILE", size)
        yield


@pytest.fixture
def _eager_with_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch refuses gradients on the CPU because compiled code has none; its plain algebra has them."""
    monkeypatch.setattr(torch_flex, "_validate_device", lambda *_: None)
    monkeypatch.setattr(torch_flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)


def padded(forest: Forest, size: int, window: int | None) -> Tensor:
    """Returns who sees whom, the padding only itself."""
    visible = torch.eye(size, dtype=torch.bool)
    visible[: len(forest), : len(forest)] = seen(forest, window)
    return visible


def tables(mask: BlockMask) -> tuple[Tensor, Tensor]:
    """Returns which tiles are partly and which fully seen, as tables."""
    names = [("kv_num_blocks", "kv_indices"), ("full_kv_num_blocks", "full_kv_indices")]
    found = []
    for counts, columns in names:
        counts, columns = getattr(mask, counts)[0, 0], getattr(mask, columns)[0, 0]
        table = torch.zeros(columns.shape, dtype=torch.bool)
        for row, count in enumerate(counts.tolist()):
            table[row, columns[row, :count].long()] = True
        found.append(table)
    return found[0], found[1]


@given(forest=forests(), window=st.sampled_from(WINDOWS), tile=st.sampled_from([1, 2, 4]))
def test_elements_and_tiles(forest: Forest, window: int | None, tile: int) -> None:
    with tiles_of(tile):
        mask = block_mask(Tree.of(forest), window)
    size = mask.shape[-1]
    assert size >= len(forest)
    assert size % tile == 0
    expected = padded(forest, size, window)
    assert torch.equal(create_mask(mask.mask_mod, 1, 1, size, size, "cpu")[0, 0], expected)
    count = expected.view(size // tile, tile, size // tile, tile).sum((1, 3))
    partly, fully = tables(mask)
    assert not (partly & fully).any()
    assert torch.equal(mask.to_dense()[0, 0].bool(), partly | fully)
    if tile > 1:  # a tile of one element is its own diagonal, which is never called full
        assert torch.equal(fully, count == tile * tile)
    if window is None:
        assert torch.equal(partly | fully, count > 0)
    assert ((partly | fully) | (count == 0)).all()


def test_tiles_of_a_chain_are_exact_under_a_window() -> None:
    with tiles_of(4):
        partly, fully = tables(block_mask(Tree.of(build_forest([[1] * 16])), 6))
    # Queries 4..7 see nodes -1..7; queries 8..11 see 3..11, so node 3 alone of the first tile.
    band = [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 1]]
    assert partly.int().tolist() == band
    assert not fully.any()


def test_known_tiles() -> None:
    # A stem of 4; below it 4 and 8 nodes.
    forest = build_forest([[0] * 4 + [1] * 4, [0] * 4 + [2] * 8])
    with tiles_of(4):
        partly, fully = tables(block_mask(Tree.of(forest)))
    assert partly.int().tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    assert fully.int().tolist() == [[0, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0], [1, 0, 1, 0]]


@pytest.mark.usefixtures("_eager_with_gradients")
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize(("window", "softcap"), [(None, None), (1, None), (100, None), (None, 0.7), (20, 0.7)])
def test_values_and_gradients(heads: tuple[int, int], window: int | None, softcap: float | None) -> None:
    forest = long_forest(130)
    assert len(forest) % 128 != 0
    parts = inputs(forest, heads)
    found = attended(flex_attention, parts, Tree.of(forest), window=window, softcap=softcap)
    assert found.output.shape == (1, len(forest), heads[0], 8)
    assert_close(found, dense(parts, forest, window, softcap))


@pytest.mark.usefixtures("_eager_with_gradients")
@pytest.mark.parametrize("rows", [[[7]], [[7], [8], [9]], FORKED, [[1] * 256], [[1] * 128 + [2] * 129]])
def test_short_rows_and_whole_tiles(rows: list[list[int]]) -> None:
    forest = build_forest(rows)
    parts = inputs(forest, (4, 2))
    assert_close(attended(flex_attention, parts, Tree.of(forest)), dense(parts, forest))


def test_masks_are_made_once() -> None:
    tree = Tree.of(build_forest(FORKED))
    mask = block_mask(tree)
    assert block_mask(tree) is mask
    assert block_mask(tree, 100) is mask  # a window that hides nothing
    assert block_mask(tree, 3) is block_mask(tree, 3) is not mask
    assert mask.shape == (1, 1, 256, 256)


def test_a_mask_is_where_its_tree_is() -> None:
    mask = block_mask(Tree.of(build_forest(FORKED)).to("meta"), 3)
    assert mask.kv_indices.device.type == mask.full_q_indices.device.type == "meta"


def test_new_lengths_trees_and_windows_do_not_compile_again(monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    monkeypatch.setattr(flex, "_attend", torch.compile(flex._attend, backend=counter))

    def compiled_for(stems: list[int], window: int | None, scale: float, softcap: float | None) -> int:
        for stem in stems:
            forest = long_forest(stem)
            parts = inputs(forest, (4, 2))
            with torch.no_grad():
                found = flex_attention(*parts[:3], Tree.of(forest), scale=scale, window=window, softcap=softcap)
            expected = dense(parts, forest, window, softcap, scale).output
            torch.testing.assert_close(found.double(), expected, atol=2e-5, rtol=2e-5)
        return counter.frame_count

    assert compiled_for([10, 150, 300, 600, 20], None, SCALE, None) == 2  # one length, then any
    assert compiled_for([10, 400, 20], 90, SCALE, None) == 2
    assert compiled_for([10, 400, 20], None, SCALE, 0.7) == 3
    assert compiled_for([10, 400, 20], 90, 0.5, 0.9) == 4
    # A number that turned into a symbol would be an input of the graph.
    assert all("L_scale" not in graph.code and "L_softcap" not in graph.code for graph in counter.graphs)
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("g++") is None or " " in sys.prefix,
    reason="the CPU's compiled kernel needs g++, and an environment whose path has no space",
)
@pytest.mark.parametrize("window", [None, 140])
@pytest.mark.parametrize("softcap", [None, 0.7])
def test_the_compiled_kernel_of_the_cpu(
    window: int | None, softcap: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It visits the listed tiles only and masks none that is listed as full; plain algebra knows no tiles.
    monkeypatch.setattr(flex, "_attend", flex._compiled)
    stem = [9] * 400
    wide = build_forest([stem + [1] * 300, stem + [2] * 140, stem[:200] + [3] * 60, [4] * 50])
    for forest in (long_forest(10), wide):
        tree, parts = Tree.of(forest), inputs(forest, (4, 2))
        with torch.no_grad():
            found = flex_attention(*parts[:3], tree, scale=SCALE, window=window, softcap=softcap)
        expected = dense(parts, forest, window, softcap).output
        torch.testing.assert_close(found.double(), expected, atol=2e-5, rtol=2e-5)
    partly, fully = tables(block_mask(tree, window))  # of the wide one
    assert fully.any() == (window is None)
    assert (partly | fully).sum() < len(partly) * (len(partly) + 1) // 2, "a causal mask would have as many tiles"
