from __future__ import annotations

from typing import Any

import pytest
import torch

from lora_dpo.tree import choice
from lora_dpo.tree.attention import block_attention
from lora_dpo.tree.blocks import OVERHEAD
from lora_dpo.tree.choice import Call, Kernel, choose, tree_attention
from lora_dpo.tree.forest import build_forest
from lora_dpo.tree.tree import Tree
from lora_dpo.tree.varlen import varlen_attention
from tests.tree.dense import FORKED, assert_close, attended, dense, inputs
from tests.tree.forests import overhead
from tests.tree.packed import reference

ALL = frozenset(Kernel)
A100 = Call("cuda", (8, 0), torch.bfloat16, 128, softcap=False, keys_per_node=2.0, installed=ALL)


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({}, Kernel.FLASH),
        ({"softcap": True}, Kernel.FLASH),
        ({"dtype": torch.float16}, Kernel.FLASH),
        ({"head_dim": 256}, Kernel.FLASH),
        ({"keys_per_node": 4.0}, Kernel.FLASH),
        ({"keys_per_node": 4.1}, Kernel.FLEX),  # too many repeated keys
        ({"dtype": torch.float32}, Kernel.FLEX),
        ({"capability": (7, 5)}, Kernel.FLEX),
        ({"head_dim": 320}, Kernel.FLEX),
        ({"head_dim": 20}, Kernel.FLEX),  # not a multiple of 8
        ({"head_dim": 8}, Kernel.FLASH),
        ({"head_dim": 8, "dtype": torch.float32}, Kernel.BLOCKS),
        ({"installed": ALL - {Kernel.FLASH}}, Kernel.VARLEN),
        ({"installed": ALL - {Kernel.FLASH}, "softcap": True}, Kernel.FLEX),
        ({"installed": ALL - {Kernel.FLASH}, "head_dim": 256}, Kernel.VARLEN),
        ({"installed": ALL - {Kernel.FLASH}, "head_dim": 256, "capability": (8, 9)}, Kernel.FLEX),
        ({"installed": ALL - {Kernel.FLASH}, "head_dim": 192, "capability": (8, 9)}, Kernel.VARLEN),
        ({"installed": ALL - {Kernel.FLASH, Kernel.VARLEN}}, Kernel.FLEX),
        ({"installed": frozenset({Kernel.BLOCKS})}, Kernel.BLOCKS),
        ({"device": "cpu", "capability": (0, 0)}, Kernel.BLOCKS),
        ({"device": "mps", "capability": (0, 0)}, Kernel.BLOCKS),
        ({"device": "xpu", "capability": (0, 0), "dtype": torch.float32}, Kernel.BLOCKS),
    ],
)
def test_decisions(facts: dict[str, Any], expected: Kernel) -> None:
    assert choose(A100._replace(**facts)) is expected


def test_the_cpu_attends_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(choice, "choose", lambda call: calls.append(call) or choose(call))
    forest = build_forest(FORKED)
    tree, parts = Tree.of(forest), inputs(forest, (4, 2))
    found = attended(tree_attention, parts, tree, window=4, softcap=0.7)
    for one, other in zip(found, attended(block_attention, parts, tree, window=4, softcap=0.7), strict=True):
        assert torch.equal(one, other)
    (call,) = calls
    assert call[:5] == ("cpu", (0, 0), torch.float32, 8, True)
    # With a window of 4, chains of 3, 5, 6, 2, 4, 3, 2 and 7 see up to 3 nodes above them: all but the first and last.
    assert call.keys_per_node == (32 + 6 * 3) / 32
    assert Kernel.BLOCKS in call.installed


def test_a_kernel_can_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    forest = build_forest(FORKED)
    parts = inputs(forest, (4, 2))
    monkeypatch.setattr(choice, "flash_kernel", lambda: reference)
    found = attended(tree_attention, parts, Tree.of(forest), window=4, softcap=0.7, kernel=Kernel.FLASH)
    assert_close(found, dense(parts, forest, 4, 0.7))
    with torch.no_grad():  # on the CPU FlexAttention goes forward only
        flex = tree_attention(*parts[:3], Tree.of(forest), scale=0.6, window=4, softcap=0.7, kernel=Kernel.FLEX)
    torch.testing.assert_close(flex, found.output.detach(), atol=2e-5, rtol=2e-5)


def test_a_named_kernel_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "flash_kernel", lambda: None)
    forest = build_forest(FORKED)
    with pytest.raises(ImportError, match="flash-attn is not installed"):
        tree_attention(*inputs(forest, (4, 2))[:3], Tree.of(forest), scale=1.0, kernel=Kernel.FLASH)


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("price", [OVERHEAD, 2])
def test_autocast_is_bf16_attention(price: int, softcap: float | None) -> None:
    forest = build_forest(FORKED)
    parts = inputs(forest, (4, 2))
    low = [part.bfloat16() for part in parts]
    with overhead(price):
        tree = Tree.of(forest)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = attended(tree_attention, parts, tree, softcap=softcap)
        plain = attended(block_attention, low, tree, softcap=softcap)
    assert found.output.dtype == torch.bfloat16
    assert {part.dtype for part in found[1:]} == {torch.float32}  # as the inputs are
    for one, other in zip(found, plain, strict=True):
        assert torch.equal(one.float(), other.float())
    assert_close(found, dense(low, forest, softcap=softcap), tolerance=3e-2)


def test_autocast_goes_before_the_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(choice, "choose", lambda call: calls.append(call) or Kernel.FLASH)
    monkeypatch.setattr(choice, "flash_kernel", lambda: reference)
    forest = build_forest(FORKED)
    parts = inputs(forest, (4, 2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = attended(tree_attention, parts, Tree.of(forest))
    assert calls[0].dtype == torch.bfloat16
    assert found.output.dtype == torch.bfloat16
    assert found.of_key.dtype == torch.float32
    plain = attended(varlen_attention, [part.bfloat16() for part in parts], Tree.of(forest), kernel=reference)
    assert_close(found, plain._replace(**{n: p.double() for n, p in plain._asdict().items()}), tolerance=3e-2)
