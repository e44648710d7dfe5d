"""The fused adapter computes what PEFT's does, and steps aside wherever it could not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lora_dpo.tree import lora
from lora_dpo.tree.lora import fuse_adapters


class Layer(nn.Module):
    """One linear layer, as models have them."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.linear = Conv1D(5, 7) if kind == "conv1d" else nn.Linear(7, 5, bias=kind == "bias")

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


def adapted(kind: str = "bias", **options: Any) -> PeftModel:
    torch.manual_seed(0)
    config = LoraConfig(
        **{"r": 3, "lora_alpha": 7, "target_modules": ["linear"], "fan_in_fan_out": kind == "conv1d"} | options
    )
    model = get_peft_model(Layer(kind), config)
    for name, value in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(value)
    return model


def computed(model: PeftModel, x: Tensor) -> dict[str, Tensor]:
    """Returns the output, and the gradients of input and adapter."""
    x = x.clone().requires_grad_()
    model.zero_grad()
    output = model(x)
    upstream = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    (output.float() * upstream).sum().backward()
    gradients = {name: value.grad for name, value in model.named_parameters() if value.requires_grad}
    return {"output": output.detach(), "input": x.grad, **{name: value.clone() for name, value in gradients.items()}}


@pytest.fixture
def fused_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Notes every call that was fused."""
    calls: list[int] = []
    apply = lora._FusedLora.apply
    monkeypatch.setattr(lora._FusedLora, "apply", lambda *args: calls.append(1) or apply(*args))
    return calls


@pytest.mark.parametrize("kind", ["bias", "no bias", "conv1d"])
@pytest.mark.parametrize("shape", [(4, 7), (2, 3, 7)])
def test_equals_peft(kind: str, shape: tuple[int, ...], fused_calls: list[int]) -> None:
    model, x = adapted(kind), torch.randn(shape)
    expected = computed(model, x)
    assert fuse_adapters(model) == 1
    found = computed(model, x)
    assert fused_calls == [1]
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.allclose(found[name], value, atol=1e-5), name


@pytest.mark.parametrize("base", [torch.float32, torch.bfloat16])
def test_under_autocast_it_is_as_close_to_fp32_as_peft(base: torch.dtype, fused_calls: list[int]) -> None:
    model, x = adapted(), torch.randn(64, 7).bfloat16()
    exact = computed(model, x.float())
    model.base_model.model.linear.base_layer.to(base)
    errors = []
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            found = computed(model, x)
        assert all(value.isfinite().all() for value in found.values())
        assert found["base_model.model.linear.lora_A.default.weight"].dtype == torch.float32
        errors.append(sum((found[name] - value).norm() / value.norm() for name, value in exact.items()))
        fuse_adapters(model)
    assert len(fused_calls) == (base == torch.bfloat16)  # an fp32 base under autocast is cast in every call by PEFT
    assert 0 < errors[1] <= 1.15 * errors[0]


def disabled(model: PeftModel) -> None:
    model.base_model.disable_adapter_layers()


def merged(model: PeftModel) -> None:
    model.merge_adapter()


def with_a_second_adapter(model: PeftModel) -> None:
    model.add_adapter("other", model.peft_config["default"])
    model.base_model.set_adapter(["default", "other"])


def with_a_hook(model: PeftModel) -> None:
    model.base_model.model.linear.base_layer.register_forward_hook(lambda module, args, output: 2 * output)


@pytest.mark.parametrize("state", [disabled, merged, with_a_second_adapter, with_a_hook])
def test_any_other_state_is_peft_s(state: Any, fused_calls: list[int]) -> None:
    model, x = adapted(), torch.randn(4, 7)
    state(model)
    expected = model(x)
    fuse_adapters(model)
    assert torch.equal(model(x), expected)
    assert not fused_calls


@pytest.mark.parametrize("options", [{"lora_dropout": 0.5}, {"use_dora": True}, {"lora_bias": True}, {"bias": "all"}])
def test_any_other_adapter_is_peft_s(options: dict[str, Any], fused_calls: list[int]) -> None:
    model, x = adapted(**options), torch.randn(4, 7)
    torch.manual_seed(2)
    expected = computed(model, x)
    fuse_adapters(model)
    torch.manual_seed(2)
    assert all(torch.equal(value, expected[name]) for name, value in computed(model, x).items())
    assert not fused_calls


def test_a_gradient_is_not_computed_for_an_input_that_wants_none(fused_calls: list[int]) -> None:
    model = adapted()
    fuse_adapters(model)
    x = torch.randn(4, 7)
    model(x).sum().backward()
    assert x.grad is None
    assert fused_calls == [1]


def test_no_rows_at_all(fused_calls: list[int]) -> None:
    model = adapted()
    fuse_adapters(model)
    assert model(torch.zeros(0, 7)).shape == (0, 5)
    assert fused_calls == [1]


def test_merging_afterwards_gives_the_same_function() -> None:
    model, x = adapted(), torch.randn(4, 7)
    fuse_adapters(model)
    expected = model(x)
    assert torch.allclose(model.merge_and_unload()(x), expected, atol=1e-5)
