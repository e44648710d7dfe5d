from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lora_dpo.model.base import load_model
from lora_dpo.model.four_bit import FourBit, bitsandbytes
from lora_dpo.model.streaming import open_model
from lora_dpo.recipe.schema import ModelSection

pytest.importorskip("bitsandbytes")


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2"])  # gpt2's layers are the other way round
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_leaves_what_a_model_in_4_bits_computes_with(
    architecture: str, dtype: str, tiny_models, tmp_path: Path
) -> None:
    section = ModelSection(name=str(tiny_models(architecture)), dtype=dtype)
    model, weights = open_model(section, tmp_path / "scratch")
    four_bit = FourBit(model, getattr(torch, dtype), tmp_path / "four")
    quantised = load_model(section, four_bit=True)
    turned = architecture == "gpt2"
    found = {}
    for path, module in quantised.named_modules():
        if isinstance(module, bitsandbytes().nn.Linear4bit):
            value = bitsandbytes().functional.dequantize_4bit(module.weight, module.weight.quant_state).float()
            found[f"{path}.weight"] = value.T if turned else value
    assert four_bit.names == found.keys()
    for name, value in found.items():
        assert torch.equal(four_bit(name, weights[name]), value)
        assert torch.equal(four_bit(name, weights[name]), value)  # from its file
        assert not torch.equal(value, weights[name])
    head = model.get_output_embeddings()
    assert all(model.get_submodule(name.removesuffix(".weight")) is not head for name in found)


def test_other_weights_stay(tiny_models, tmp_path: Path) -> None:
    model, weights = open_model(ModelSection(name=str(tiny_models("llama"))), tmp_path / "scratch")
    four_bit = FourBit(model, torch.float32, tmp_path / "four")
    name = "model.embed_tokens.weight"
    assert torch.equal(four_bit(name, weights[name]), weights[name])
    assert not (tmp_path / "four").exists()
