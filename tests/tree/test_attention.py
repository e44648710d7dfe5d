from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lora_dpo.tree import kernels
from lora_dpo.tree.attention import block_attention
from lora_dpo.tree.blocks import OVERHEAD
from lora_dpo.tree.forest import Forest, build_forest
from lora_dpo.tree.kernels import Scores, attend, attend_backward
from lora_dpo.tree.tree import Tree
from tests.tree.dense import FORKED, HEADS, SCALE, Result, assert_close, attended, dense, inputs
from tests.tree.forests import ancestors, forests, overhead, seen


def blockwise(
    parts: list[Tensor], tree: Tree, window: int | None = None, softcap: float | None = None, scale: float = SCALE
) -> Result:
    return attended(block_attention, parts, tree, scale=scale, window=window, softcap=softcap)


def pieces(tree: Tree, window: int | None = None) -> set[tuple[str, str]]:
    """Returns the kinds of pieces that occur: what hides keys, and whether they are a view or picked out."""
    return {
        ("causal" if piece.causal else "masked" if piece.mask is not None else "all", type(piece.keys).__name__)
        for cut in tree.cuts(window, 1)
        for piece in cut.pieces
    }


def test_by_hand() -> None:
    # Token 1 is followed by 2 or by 3. Equal logits: every query takes the mean of what it sees.
    tree = Tree.of(build_forest([[1, 2], [1, 3], [4]]))
    zeros = torch.zeros(1, 1, 4, 2)
    value = torch.tensor([[8.0, 0.0], [0.0, 8.0], [4.0, 4.0], [1.0, 2.0]])[None, None]
    output = block_attention(zeros, zeros, value, tree, scale=1.0)
    assert output[0, :, 0].tolist() == [[8.0, 0.0], [4.0, 4.0], [6.0, 2.0], [1.0, 2.0]]


@pytest.mark.parametrize("heads", HEADS)
@given(
    forest=forests(),
    price=st.sampled_from([0, 1, 5, 20, OVERHEAD]),
    window=st.sampled_from([None, 1, 2, 3, 7]),
    softcap=st.sampled_from([None, 0.7]),
)
@settings(max_examples=60)
def test_any_forest(
    heads: tuple[int, int], forest: Forest, price: int, window: int | None, softcap: float | None
) -> None:
    parts = inputs(forest, heads)
    with overhead(price):
        found = blockwise(parts, Tree.of(forest), window, softcap)
    assert found.output.shape == (1, len(forest), heads[0], 8)
    assert_close(found, dense(parts, forest, window, softcap))


@pytest.mark.parametrize("softcap", [None, 0.7])
@pytest.mark.parametrize("window", [None, 1, 4, 8, 100])
@pytest.mark.parametrize("heads", HEADS)
def test_every_kind_of_piece(heads: tuple[int, int], window: int | None, softcap: float | None) -> None:
    forest = build_forest(FORKED)
    parts = inputs(forest, heads)
    with overhead(2):  # chains of more than sqrt(2 * 2) take two calls, for their path and for themselves
        tree = Tree.of(forest)
        found = blockwise(parts, tree, window, softcap)
        if window in (None, 100):
            assert pieces(tree, window) == {
                ("causal", "slice"), ("all", "slice"), ("all", "Tensor"), ("masked", "Tensor"),
            }  # fmt: skip
    assert_close(found, dense(parts, forest, window, softcap))


def test_known_cuts() -> None:
    with overhead(2):
        cuts = Tree.of(build_forest(FORKED)).cuts(None, 3)
    spans = [(0, 3), (3, 8), (8, 14), (14, 16), (16, 20), (20, 23), (23, 25), (25, 32)]
    assert [(cut.queries.start, cut.queries.stop) for cut in cuts] == spans
    causal = [[piece.causal for piece in cut.pieces] for cut in cuts]
    assert causal == [[True], [False, True], [False, True], [False], [False, True], [False, True], [False], [True]]
    assert [cuts[i].pieces[0].keys for i in (1, 2, 4)] == [slice(0, 3), slice(0, 8), slice(0, 3)]
    assert cuts[5].pieces[0].keys.tolist() == [0, 1, 2, 16, 17, 18, 19]  # a branch lies between them
    short = cuts[6].pieces[0]
    assert short.keys.tolist() == [0, 1, 2, 16, 17, 18, 19, 23, 24]
    inf = float("inf")
    assert short.mask.tolist() == [[0.0] * 8 + [-inf], [0.0] * 9] * 3  # once for each head of a group


@pytest.mark.parametrize("heads", [(2, 2), (4, 2)])
@pytest.mark.parametrize(("window", "softcap"), [(None, None), (None, 3.0), (90, None)])
def test_long_branches_at_the_real_price(heads: tuple[int, int], window: int | None, softcap: float | None) -> None:
    # 100 * 100 > 2 * 4096: the masked triangle of a branch costs more than a second call.
    forest = build_forest([[1] * 70 + [2] * 100, [1] * 70 + [3] * 101, [1] * 70 + [4] * 30])
    tree = Tree.of(forest)
    if window is None:
        assert sorted(len(cut.pieces) for cut in tree.cuts(None, 1)) == [1, 1, 2, 2]
    parts = inputs(forest, heads)
    assert_close(blockwise(parts, tree, window, softcap), dense(parts, forest, window, softcap))


@pytest.mark.parametrize(
    ("price", "window", "softcap"), [(OVERHEAD, None, None), (2, None, None), (2, 4, None), (2, None, 2.0)]
)
@pytest.mark.parametrize("heads", HEADS)
def test_bf16(heads: tuple[int, int], price: int, window: int | None, softcap: float | None) -> None:
    forest = build_forest(FORKED)
    parts = inputs(forest, heads, torch.bfloat16)
    with overhead(price):
        found = blockwise(parts, Tree.of(forest), window, softcap)
    assert {part.dtype for part in found} == {torch.bfloat16}
    assert_close(found, dense(parts, forest, window, softcap), tolerance=3e-2)


def test_gradients_add_up_over_the_branches() -> None:
    # With equal logits a value's gradient is the sum of 1 / (what the query sees) over the queries that see it.
    tree = Tree.of(build_forest([[1, 2], [1, 3], [4]]))
    zeros, value = torch.zeros(1, 1, 4, 1), torch.zeros(1, 1, 4, 1, requires_grad=True)
    block_attention(zeros, zeros, value, tree, scale=1.0).sum().backward()
    assert value.grad.flatten().tolist() == [1 + 1 / 2 + 1 / 2, 1 / 2, 1 / 2, 1.0]


def test_nothing_but_the_branch_itself_matters() -> None:
    forest = build_forest(FORKED)
    parts = inputs(forest, (4, 2))
    with overhead(2):
        tree = Tree.of(forest)
        before = blockwise(parts, tree).output
        parts[1][:, :, 3:16] += 1.0  # the keys and values of another branch
        parts[2][:, :, 3:16] += 1.0
        after = blockwise(parts, tree).output
    changed = (before != after).flatten(2).any(-1)[0]
    assert changed.nonzero().flatten().tolist() == list(range(3, 16))


@pytest.mark.parametrize("hides", ["nothing", "mask", "causal"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_both_kernels_agree(hides: str, dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch) -> None:
    causal = hides == "causal"
    generator = torch.Generator().manual_seed(0)
    rows, keys = (5, 5) if causal else (4, 5)
    query, gradient = (torch.randn(3, rows, 8, generator=generator).to(dtype) for _ in range(2))
    key, value = (torch.randn(3, keys, 8, generator=generator).to(dtype) for _ in range(2))
    hidden = torch.rand(rows, keys, generator=generator) < 0.4
    hidden[:, 0] = False
    mask = torch.zeros(rows, keys).masked_fill(hidden, float("-inf")) if hides == "mask" else None
    scores = Scores(SCALE, None)

    def both_ways() -> list[Tensor]:
        output, normaliser = attend(query, key, value, mask, scores, causal=causal)
        gradients = attend_backward(query, output, gradient, normaliser, key, value, mask, scores, causal=causal)
        return [output, normaliser, *gradients]

    fused = both_ways()
    monkeypatch.setattr(kernels, "_fused", lambda *_: False)
    plain = both_ways()
    monkeypatch.undo()
    assert [part.dtype for part in plain] == [part.dtype for part in fused] == [dtype, torch.float32, *[dtype] * 3]
    for one, other in zip(fused, plain, strict=True):
        torch.testing.assert_close(one, other, atol=tolerance, rtol=tolerance)
    logits = SCALE * query.double() @ key.double().transpose(-1, -2)
    if causal:
        logits += torch.full((rows, keys), float("-inf")).triu(1)
    if mask is not None:
        logits += mask
    torch.testing.assert_close(plain[1].double(), logits.logsumexp(-1), atol=tolerance, rtol=tolerance)


def test_a_softcap_is_never_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    # softcap * tanh(1 * 2 / 1) = 0.964; the kernel, which knows no softcap, would give 2.
    one = torch.ones(1, 1, 1)
    _, normaliser = attend(2 * one, one, one, None, Scores(1.0, 1.0), causal=False)
    assert normaliser.item() == pytest.approx(0.9640275)
    _, normaliser = attend(2 * one, one, one, None, Scores(1.0, None), causal=False)
    assert normaliser.item() == pytest.approx(2.0)


@given(forest=forests(), window=st.sampled_from([None, 1, 2, 3, 50]))
def test_dense_mask(forest: Forest, window: int | None) -> None:
    tree = Tree.of(forest)
    assert torch.equal(tree.dense_mask(window), seen(forest, window))
    nodes = torch.arange(len(forest))
    queries, keys = nodes.flip(0)[::2], nodes[1::2]
    assert torch.equal(tree.visible(queries, keys, window), seen(forest, window)[queries][:, keys])


@given(forest=forests(), price=st.sampled_from([0, 5, OVERHEAD]))
def test_a_tree_is_its_forest_as_one_row(forest: Forest, price: int) -> None:
    with overhead(price):
        tree = Tree.of(forest)
    assert tree.ids.tolist() == [forest.ids.tolist()]
    assert tree.depth.tolist() == [[len(ancestors(forest, node)) for node in range(len(forest))]]
    assert tree.subtree_end.tolist() == forest.subtree_end.tolist()
    assert tree.depth_span == max(len(ancestors(forest, node)) + 1 for node in range(len(forest)))


def test_masks_are_made_once() -> None:
    tree = Tree.of(build_forest([[1, 2], [1, 3, 4]]))
    cuts = tree.cuts(None, 2)
    assert tree.cuts(None, 2) is cuts
    assert tree.cuts(100, 2) is cuts  # a window that hides nothing
    assert tree.cuts(None, 1) is not cuts
    assert tree.cuts(2, 2) is tree.cuts(2, 2) is not cuts
    assert tree.cuts(1, 2) is not tree.cuts(2, 2)
    assert Tree.of(build_forest([[1, 2], [1, 3, 4]])).cuts(None, 2) is not cuts


def test_layers_share_the_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    forest = build_forest([[1, 2], [1, 3, 4]])
    tree = Tree.of(forest)
    parts = inputs(forest, (4, 2))
    first = blockwise(parts, tree)
    monkeypatch.setattr(Tree, "_cut", lambda *_: pytest.fail("cut again"))
    for one, other in zip(blockwise(parts, tree), first, strict=True):
        assert torch.equal(one, other)


def test_to_another_device() -> None:
    tree = Tree.of(build_forest([[1, 2], [1, 3, 4]]))
    cuts = tree.cuts(None, 1)
    moved = tree.to("meta")  # the only other device that every machine has
    for name in ("ids", "depth", "subtree_end"):
        assert getattr(moved, name).device.type == "meta"
        assert getattr(moved, name).shape == getattr(tree, name).shape
        assert getattr(tree, name).device.type == "cpu"
    assert moved.blocks == tree.blocks
    assert moved.chains == tree.chains
    assert moved.cache == {}
    assert moved.cuts(None, 1)[0].pieces[0].mask.device.type == "meta"
    assert tree.cuts(None, 1) is cuts
    assert cuts[0].pieces[0].mask.device.type == "cpu"


def test_to_the_same_device() -> None:
    tree = Tree.of(build_forest([[1, 2]]))
    assert tree.to("cpu") is tree
    assert tree.to(torch.device("cpu"), non_blocking=True) is tree
