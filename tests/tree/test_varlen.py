from __future__ import annotations

import inspect
import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lora_dpo.tree import varlen
from lora_dpo.tree.forest import Forest, build_forest
from lora_dpo.tree.kernels import Scores
from lora_dpo.tree.tree import Tree
from lora_dpo.tree.varlen import (
    Sequences,
    flash_kernel,
    keys_per_node,
    sequences,
    torch_kernel,
    varlen_attention,
)
from tests.tree.dense import FORKED, HEADS, SCALE, assert_close, attended, dense, inputs
from tests.tree.forests import forests
from tests.tree.packed import flash_attn_varlen_func, reference


@pytest.fixture
def fresh_imports() -> Iterator[None]:
    """Looks for kernels anew, and forgets what was found."""
    varlen._function.cache_clear()
    yield
    varlen._function.cache_clear()


@pytest.mark.parametrize("heads", HEADS)
@given(forest=forests(), window=st.sampled_from([None, 1, 2, 3, 7]), softcap=st.sampled_from([None, 0.7]))
@settings(max_examples=60)
def test_any_forest(heads: tuple[int, int], forest: Forest, window: int | None, softcap: float | None) -> None:
    parts = inputs(forest, heads)
    found = attended(varlen_attention, parts, Tree.of(forest), kernel=reference, window=window, softcap=softcap)
    assert found.output.shape == (1, len(forest), heads[0], 8)
    assert_close(found, dense(parts, forest, window, softcap))


@pytest.mark.parametrize("window", [None, 1, 4, 8, 100])
@pytest.mark.parametrize("heads", HEADS)
def test_forks_below_forks(heads: tuple[int, int], window: int | None) -> None:
    forest = build_forest(FORKED)
    parts = inputs(forest, heads)
    found = attended(varlen_attention, parts, Tree.of(forest), kernel=reference, window=window)
    assert_close(found, dense(parts, forest, window))


def test_known_sequences() -> None:
    # 0 0 | 1 1 1 and 0 0 | 2: the stem is nodes 0 and 1, its branches are 2..4 and 5.
    tree = Tree.of(build_forest([[0, 0, 1, 1, 1], [0, 0, 2]]))
    found = sequences(tree)
    assert found.query_starts.tolist() == [0, 2, 5, 6]
    assert found.key_starts.tolist() == [0, 2, 7, 10]
    assert found.keys.tolist() == [0, 1, 0, 1, 2, 3, 4, 0, 1, 5]
    assert (found.most_queries, found.most_keys, found.sides) == (3, 5, (-1, 0))
    assert keys_per_node(tree) == 10 / 6
    # With a window of 2 the first query of a branch sees node 1 and itself.
    near = sequences(tree, 2)
    assert near.key_starts.tolist() == [0, 2, 6, 8]
    assert near.keys.tolist() == [0, 1, 1, 2, 3, 4, 1, 5]
    assert (near.most_queries, near.most_keys, near.sides) == (3, 4, (1, 0))
    assert keys_per_node(tree, 2) == 8 / 6


def test_sequences_are_made_once() -> None:
    tree = Tree.of(build_forest(FORKED))
    found = sequences(tree)
    assert sequences(tree) is found
    assert sequences(tree, 100) is found  # a window that hides nothing
    assert sequences(tree, 3) is sequences(tree, 3) is not found
    moved = sequences(tree.to("meta"))
    assert moved.keys.device.type == moved.key_starts.device.type == "meta"
    assert moved.most_keys == found.most_keys


def test_gradients_of_a_shared_key_are_summed_in_fp32() -> None:
    # 300 branches each add 1 to their root; bf16 knows 256 and 258, so a sum in it would stay at 256.
    tree = Tree.of(build_forest([[0, token] for token in range(1, 301)]))
    key, value = (torch.zeros(1, 1, 301, 1, dtype=torch.bfloat16, requires_grad=True) for _ in range(2))

    def first_keys(query: Tensor, key: Tensor, value: Tensor, found: Sequences, scores: Scores) -> Tensor:
        return value[found.key_starts[1:-1].long()]  # of each branch, its root

    varlen_attention(key, key, value, tree, kernel=first_keys, scale=1.0).sum().backward()
    assert value.grad.flatten().tolist() == [300.0] + [0.0] * 300
    assert value.grad.dtype == torch.bfloat16


@pytest.mark.usefixtures("fresh_imports")
@pytest.mark.parametrize(("window", "softcap"), [(None, None), (4, None), (None, 0.7), (4, 0.7)])
def test_what_flash_attention_is_asked_for(
    window: int | None, softcap: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = types.ModuleType("flash_attn")
    package.flash_attn_varlen_func = flash_attn_varlen_func
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    forest = build_forest(FORKED)
    parts = inputs(forest, (4, 2))
    found = attended(varlen_attention, parts, Tree.of(forest), kernel=flash_kernel(), window=window, softcap=softcap)
    assert_close(found, dense(parts, forest, window, softcap))


@pytest.mark.usefixtures("fresh_imports")
def test_an_old_flash_attention_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    package = types.ModuleType("flash_attn")
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    assert flash_kernel() is None  # without the function
    varlen._function.cache_clear()
    package.flash_attn_varlen_func = lambda q, k, v, cu_seqlens_q, window_size=(-1, -1): q  # before softcap
    assert flash_kernel() is None


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("heads", HEADS)
def test_pytorch_takes_the_arguments(heads: tuple[int, int], window: int | None) -> None:
    # On the meta device its checks and shapes are real, and nothing is computed.
    if torch_kernel() is None:
        pytest.skip("this PyTorch has no variable-length attention with windows")
    forest = build_forest(FORKED)
    parts = [part.to("meta") for part in inputs(forest, heads, torch.bfloat16)]
    found = attended(varlen_attention, parts, Tree.of(forest).to("meta"), kernel=torch_kernel(), window=window)
    assert [part.shape for part in found] == [parts[i].shape for i in (3, 0, 1, 2)]


@pytest.mark.parametrize("window", [None, 4])
def test_what_pytorch_is_asked_for(window: int | None) -> None:
    function = pytest.importorskip("torch.nn.attention.varlen").varlen_attn

    def stand_in(*args: Any, **kwargs: Any) -> Tensor:
        given = inspect.signature(function).bind(*args, **kwargs).arguments
        assert given["enable_gqa"]
        return flash_attn_varlen_func(
            given["query"], given["key"], given["value"], given["cu_seq_q"], given["cu_seq_k"], given["max_q"],
            given["max_k"], softmax_scale=given["scale"], causal=True, window_size=given["window_size"],
        )  # fmt: skip

    def kernel(query: Tensor, key: Tensor, value: Tensor, found: Sequences, scores: Scores) -> Tensor:
        return varlen._torch(stand_in, query, key, value, found, scores)

    forest = build_forest(FORKED)
    parts = inputs(forest, (4, 2))
    assert_close(
        attended(varlen_attention, parts, Tree.of(forest), kernel=kernel, window=window), dense(parts, forest, window)
    )


def test_pytorch_has_no_softcap() -> None:
    if torch_kernel() is None:
        pytest.skip("this PyTorch has no variable-length attention with windows")
    parts = inputs(build_forest(FORKED), (4, 2))
    with pytest.raises(NotImplementedError, match="softcap"):
        varlen_attention(*parts[:3], Tree.of(build_forest(FORKED)), kernel=torch_kernel(), scale=SCALE, softcap=1.0)
