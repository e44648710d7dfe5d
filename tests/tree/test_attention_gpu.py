"""The GPU's kernels on a GPU: each against block-wise attention in fp32, its error against that of blocks in bf16."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lora_dpo.tree import flex
from lora_dpo.tree.attention import block_attention
from lora_dpo.tree.choice import Kernel, tree_attention
from lora_dpo.tree.forest import Forest, build_forest
from lora_dpo.tree.tree import Tree
from lora_dpo.tree.varlen import flash_kernel, torch_kernel
from tests.tree.dense import FORKED, Result, attended, inputs
from tests.tree.forests import long_forest

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

FORESTS = {
    "forked": build_forest(FORKED),
    "one node": build_forest([[7]]),
    "several tiles": long_forest(300),
    "whole tiles": build_forest([[1] * 256]),
    "lone branches": build_forest([[0] * 40 + [token] for token in range(1, 20)]),
}
# The last is a number of heads per key head that is no power of two, as Qwen-2 has.
GPU_HEADS = [(8, 8), (8, 2), (14, 2)]


def skip_without(kernel: Kernel, softcap: float | None) -> None:
    if kernel is Kernel.FLASH and flash_kernel() is None:
        pytest.skip("flash-attn is not installed")
    if kernel is Kernel.VARLEN and torch_kernel() is None:
        pytest.skip("this PyTorch has no variable-length attention with windows")
    if kernel is Kernel.VARLEN and softcap is not None:
        pytest.skip("PyTorch's variable-length attention has no softcap")
    if kernel in (Kernel.FLASH, Kernel.VARLEN) and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("FlashAttention-2 needs compute capability 8.0")


def on_gpu(forest: Forest, heads: tuple[int, int], head_dim: int, dtype: torch.dtype) -> tuple[Tree, list[Tensor]]:
    return Tree.of(forest).to("cuda"), [part.cuda() for part in inputs(forest, heads, dtype, head_dim)]


def errors(found: Result, expected: Result) -> list[float]:
    """Returns the relative error of the output and of each gradient; where a gradient is 0, relative to the output."""
    floor = 0.1 * expected.output.norm()
    return [
        ((one.float() - other).norm() / torch.maximum(other.norm(), floor)).item()
        for one, other in zip(found, expected, strict=True)
    ]


@pytest.mark.parametrize("kernel", [Kernel.FLEX, Kernel.FLASH, Kernel.VARLEN])
@pytest.mark.parametrize("name", FORESTS)
@pytest.mark.parametrize("heads", GPU_HEADS)
@pytest.mark.parametrize(("window", "softcap"), [(None, None), (20, None), (None, 0.7), (20, 0.7)])
def test_bf16_is_as_near_to_fp32_as_blocks_are(
    kernel: Kernel, name: str, heads: tuple[int, int], window: int | None, softcap: float | None
) -> None:
    skip_without(kernel, softcap)
    tree, parts = on_gpu(FORESTS[name], heads, 64, torch.bfloat16)
    options = {"window": window, "softcap": softcap, "scale": 0.2}
    expected = attended(block_attention, [part.float() for part in parts], tree, **options)
    found = attended(tree_attention, parts, tree, kernel=kernel, **options)
    assert found.output.shape == expected.output.shape
    assert {part.dtype for part in found} == {torch.bfloat16}
    of_blocks = errors(attended(block_attention, parts, tree, **options), expected)
    for field, error, allowed in zip(Result._fields, errors(found, expected), of_blocks, strict=True):
        assert error <= 1.5 * allowed + 1e-3, field


@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("kernel", [Kernel.FLEX, Kernel.FLASH, Kernel.VARLEN])
def test_sizes_of_heads(kernel: Kernel, head_dim: int) -> None:
    skip_without(kernel, None)
    if kernel is Kernel.VARLEN and head_dim > 192 and torch.cuda.get_device_capability() not in {(8, 0), (9, 0)}:
        pytest.skip("PyTorch has no backward pass for heads of this size on this device")
    tree, parts = on_gpu(long_forest(300), (4, 2), head_dim, torch.bfloat16)
    scale = head_dim**-0.5
    expected = attended(block_attention, [part.float() for part in parts], tree, scale=scale)
    of_blocks = errors(attended(block_attention, parts, tree, scale=scale), expected)
    found = errors(attended(tree_attention, parts, tree, kernel=kernel, scale=scale), expected)
    assert all(error <= 1.5 * allowed + 1e-3 for error, allowed in zip(found, of_blocks, strict=True))


@pytest.mark.parametrize(("window", "softcap"), [(None, None), (20, 0.7)])
def test_flex_in_fp32(window: int | None, softcap: float | None) -> None:
    tree, parts = on_gpu(long_forest(300), (8, 2), 64, torch.float32)
    options = {"window": window, "softcap": softcap, "scale": 0.2}
    expected = attended(block_attention, parts, tree, **options)
    assert max(errors(attended(tree_attention, parts, tree, kernel=Kernel.FLEX, **options), expected)) < 1e-4


def test_flex_compiles_for_two_lengths_and_no_more() -> None:
    torch._dynamo.reset()
    for number, stem in enumerate([10, 150, 300, 600, 20]):
        tree, parts = on_gpu(long_forest(stem), (8, 2), 64, torch.bfloat16)
        with torch._dynamo.config.patch(error_on_recompile=number > 1):
            for window in (None, 90):
                attended(flex.flex_attention, parts, tree, window=window)


def test_the_choice_of_a_gpu_attends() -> None:
    tree, parts = on_gpu(long_forest(150), (8, 2), 64, torch.float32)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        found = attended(tree_attention, parts, tree)
    assert found.output.dtype == torch.bfloat16
    assert found.of_query.dtype == torch.float32
    low = [part.bfloat16() for part in parts]
    expected = attended(block_attention, [part.float() for part in low], tree)
    of_blocks = errors(attended(block_attention, low, tree), expected)
    assert all(e <= 1.5 * allowed + 1e-3 for e, allowed in zip(errors(found, expected), of_blocks, strict=True))
