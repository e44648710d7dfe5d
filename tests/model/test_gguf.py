from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from lora_dpo.errors import UserError
from lora_dpo.model import gguf as gguf_module
from lora_dpo.model.base import load_model, load_tokenizer
from lora_dpo.model.gguf import cache_folder, dequantised
from lora_dpo.recipe.schema import ModelSection


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LORA_DPO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "gguf"


def rotated(weight: np.ndarray, heads: int) -> np.ndarray:
    """Reorders rows of a query or key projection from Transformers' rotary layout to GGUF's."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


@pytest.fixture
def gguf_file(tiny_models, tmp_path: Path) -> Path:
    """The tiny Llama, unquantised, as llama.cpp's converter would write it."""
    gguf = pytest.importorskip("gguf")
    folder = tiny_models("llama")
    model = AutoModelForCausalLM.from_pretrained(folder)
    config, tokenizer = model.config, load_tokenizer(ModelSection(name=str(folder)))
    path = tmp_path / "tiny-F32.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([token for token, _ in vocabulary])
    special = set(tokenizer.all_special_ids)
    writer.add_token_types([3 if number in special else 1 for _, number in vocabulary])
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_chat_template(tokenizer.chat_template)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, value in model.state_dict().items():
        array = value.numpy()
        if "q_proj" in name:
            array = rotated(array, config.num_attention_heads)
        if "k_proj" in name:
            array = rotated(array, config.num_key_value_heads)
        writer.add_tensor(names.get_name(name, (".weight",)), array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_weights_and_tokenizer_are_the_file_s(gguf_file: Path, tiny_models, cache: Path) -> None:
    section = ModelSection(name=str(gguf_file))
    original = AutoModelForCausalLM.from_pretrained(tiny_models("llama"))
    loaded = load_model(section)
    assert getattr(loaded, "quantization_method", None) is None
    ids = torch.arange(20, 50)[None]
    with torch.no_grad():
        torch.testing.assert_close(loaded(input_ids=ids).logits, original(input_ids=ids).logits, atol=1e-5, rtol=0)
    tokenizer, expected = load_tokenizer(section), load_tokenizer(ModelSection(name=str(tiny_models("llama"))))
    text = "Why is the sky blue?"
    assert tokenizer(text, add_special_tokens=False).input_ids == expected(text, add_special_tokens=False).input_ids
    assert tokenizer.chat_template == expected.chat_template
    assert [entry.name.split("-")[0] for entry in cache.iterdir() if entry.is_dir()] == ["tiny"]


def test_converted_once(gguf_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = dequantised(gguf_file)
    assert (first / "model.safetensors").is_file()

    def fail(*_: object) -> None:
        raise AssertionError("converted again")

    monkeypatch.setattr(gguf_module, "_convert", fail)
    assert dequantised(gguf_file) == first
    moved = gguf_file.rename(gguf_file.with_name("other.gguf"))
    with pytest.raises(AssertionError, match="converted again"):  # the name is part of the folder's
        dequantised(moved)


def test_other_content_is_another_folder(gguf_file: Path, tmp_path: Path) -> None:
    first = dequantised(gguf_file)
    content = bytearray(gguf_file.read_bytes())
    content[-1] ^= 1
    gguf_file.write_bytes(content)
    assert dequantised(gguf_file) != first


def test_interrupted_conversion_leaves_nothing(gguf_file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import PreTrainedTokenizerBase

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(PreTrainedTokenizerBase, "save_pretrained", interrupt)  # the weights are written by then
        with pytest.raises(KeyboardInterrupt):
            dequantised(gguf_file)
    assert [entry for entry in cache.iterdir() if entry.is_dir()] == []
    assert (dequantised(gguf_file) / "model.safetensors").is_file()


def test_file_of_another_kind(tmp_path: Path, cache: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"PK\x03\x04 and more")
    with pytest.raises(UserError, match="is not a GGUF file"):
        dequantised(file)
    assert not cache.exists()


def test_half_a_file(gguf_file: Path, cache: Path) -> None:
    gguf_file.write_bytes(gguf_file.read_bytes()[:2000])
    with pytest.raises(UserError, match="cannot be read as a model"):
        dequantised(gguf_file)
    assert [entry for entry in cache.iterdir() if entry.is_dir()] == []


def test_place_of_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LORA_DPO_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder() == Path("/somewhere/lora-dpo")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert cache_folder() == Path("/home/me/.cache/lora-dpo")
