from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig

from lora_dpo.errors import UserError
from lora_dpo.model.adapter import linear_layers, lora_config
from lora_dpo.model.base import load_model, load_tokenizer, resolve
from lora_dpo.recipe.schema import AdapterSection, ModelSection


@pytest.fixture
def copy_of(tiny_models, tmp_path: Path):
    """Returns a function that copies a tiny model, to be damaged."""
    return lambda architecture: Path(shutil.copytree(tiny_models(architecture), tmp_path / architecture))


def section(folder: Path | str, **keys) -> ModelSection:
    return ModelSection(name=str(folder), **keys)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_weights_have_the_precision_asked_for(dtype: str, tiny_models) -> None:
    model = load_model(section(tiny_models("llama"), dtype=dtype))
    assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype)}


def test_tokenizer_pads_on_the_right_with_a_token_that_exists(tiny_models) -> None:
    tokenizer = load_tokenizer(section(tiny_models("gemma2")))
    assert tokenizer.padding_side == "right"
    assert tokenizer.pad_token == tokenizer.eos_token == "<eos>"
    assert tokenizer.chat_template


def test_own_padding_token_is_kept(copy_of) -> None:
    folder = copy_of("qwen3")
    tokenizer = load_tokenizer(section(folder))
    tokenizer.pad_token = "<|endoftext|>"
    tokenizer.save_pretrained(folder)
    assert load_tokenizer(section(folder)).pad_token == "<|endoftext|>"


def test_missing_tokenizer(copy_of) -> None:
    folder = copy_of("llama")
    for file in folder.glob("token*"):
        file.unlink()
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    with pytest.raises(UserError, match=r"has no tokenizer that can be read[\s\S]*save_pretrained"):
        load_tokenizer(section(folder))


def test_damaged_tokenizer(copy_of) -> None:
    folder = copy_of("llama")
    (folder / "tokenizer.json").write_text('{"version": "1.0", "trunc')
    with pytest.raises(UserError, match="llama"):
        load_tokenizer(section(folder))


def test_damaged_weights(copy_of) -> None:
    folder = copy_of("llama")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"cannot be read[\s\S]*a copy may be incomplete"):
        load_model(section(folder))


def test_missing_weights(copy_of) -> None:
    folder = copy_of("llama")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="cannot be read"):
        load_model(section(folder))


def test_damaged_config(copy_of) -> None:
    folder = copy_of("llama")
    (folder / "config.json").write_text('{"model_type": "lla')
    with pytest.raises(UserError, match="cannot be read"):
        load_model(section(folder))


def test_model_that_is_neither_cached_nor_local() -> None:
    """The tests run with HF_HUB_OFFLINE=1, as a compute node does."""
    with pytest.raises(UserError, match="no-such-org/no-such-model"):
        load_model(section("no-such-org/no-such-model"))
    with pytest.raises(UserError, match="no-such-org/no-such-model"):
        load_tokenizer(section("no-such-org/no-such-model"))


def test_resolve_leaves_hub_ids_and_folders(tiny_models) -> None:
    assert resolve(section("org/model")) == "org/model"
    assert resolve(section(tiny_models("gpt2"))) == str(tiny_models("gpt2"))


@pytest.fixture
def wide_llama(tmp_path: Path) -> Path:
    """Layers of 128 features: bitsandbytes' CPU kernels take no fewer than 64."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=128,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "wide")
    return tmp_path / "wide"


def test_four_bit_weights_are_nf4_with_double_quantisation(wide_llama: Path) -> None:
    pytest.importorskip("bitsandbytes")
    from bitsandbytes.nn import Linear4bit

    model = load_model(section(wide_llama, dtype="float32"), four_bit=True)
    layers = linear_layers(model)
    assert len(layers) == 14
    for layer in layers.values():
        assert isinstance(layer, Linear4bit)
        assert layer.weight.dtype == torch.uint8
        assert layer.weight.quant_state.quant_type == "nf4"
        assert layer.weight.quant_state.nested
        assert layer.compute_dtype == torch.float32
    assert not isinstance(model.get_output_embeddings(), Linear4bit)
    exact = load_model(section(wide_llama, dtype="float32"))
    ids = torch.arange(30)[None]
    with torch.no_grad():
        error = (model(input_ids=ids).logits - exact(input_ids=ids).logits).abs().max()
    assert 0 < error < 0.2


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    model.train()
    model.zero_grad()
    ids = torch.arange(30)[None]
    model(input_ids=ids, labels=ids).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_gradients_on_four_bit_weights_survive_an_evaluation(wide_llama: Path) -> None:
    """On a CPU with AVX512-BF16, bitsandbytes repacks the weights at the first evaluation, and loses the gradient."""
    pytest.importorskip("bitsandbytes")
    model = load_model(section(wide_llama, dtype="float32"), four_bit=True)
    torch.manual_seed(1)
    model = get_peft_model(model, lora_config(AdapterSection(r=4), model))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    before = gradients(model)
    assert len(before) == 2 * 14
    assert all(gradient.abs().max() > 0 for gradient in before.values())
    with torch.no_grad():
        model.eval()(input_ids=torch.arange(30)[None])
    after = gradients(model)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], gradient) for name, gradient in before.items())
