from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from lora_dpo.errors import UserError
from lora_dpo.model.adapted import Adapted, adapt
from lora_dpo.model.base import load_model
from lora_dpo.model.streaming import open_model
from lora_dpo.recipe.schema import ModelSection
from tests.adapters import merged_by_peft, save_adapter

KINDS = {"lora": {}, "rslora": {"rslora": True}, "dora": {"dora": True}, "some": {"targets": ["c_proj|o_proj"]}}
IDS = torch.arange(30, 60)[None]


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def opened(base: Path, scratch: Path, *adapters: Path) -> tuple[Adapted, dict[str, torch.Tensor]]:
    model, weights = open_model(ModelSection(name=str(base)), scratch)
    return adapt(model, adapters), weights


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("kind", KINDS)
def test_weights_and_answers_are_peft_s(architecture: str, kind: str, tiny_models, tmp_path: Path) -> None:
    base = tiny_models(architecture)
    adapter = save_adapter(base, tmp_path / "adapter", **KINDS[kind])
    adapted, weights = opened(base, tmp_path / "scratch", adapter)
    expected = merged_by_peft(base, adapter)
    assert len(adapted.layers) == sum("lora_A" in name for name in load_file(adapter / "adapter_model.safetensors"))
    for name in weights:
        assert torch.equal(adapted.merged(name, weights[name].clone()), expected[name])
    plain = load_model(ModelSection(name=str(base)))
    before = logits(plain)
    with adapted.untrained(weights) as model:
        assert torch.equal(logits(model), before)
    with adapted.trained(weights) as model:
        assert torch.equal(logits(model), logits(PeftModel.from_pretrained(plain, str(adapter))))
        assert not torch.allclose(logits(model), before, atol=1e-2)


@pytest.mark.parametrize(
    ("first", "second"), [("lora", "rslora"), ("lora", "dora"), ("dora", "lora"), ("dora", "dora")]
)
def test_each_adapter_is_put_on_what_those_before_it_make(first: str, second: str, tiny_models, tmp_path: Path) -> None:
    base = tiny_models("llama")
    one = save_adapter(base, tmp_path / "one", seed=1, **KINDS[first])
    two = save_adapter(base, tmp_path / "two", seed=2, r=2, **KINDS[second])
    adapted, weights = opened(base, tmp_path / "scratch", one, two)
    expected = merged_by_peft(base, one, two)
    plain = load_model(ModelSection(name=str(base)))
    plain.load_state_dict(expected)
    for name in weights:
        assert torch.allclose(adapted.merged(name, weights[name].clone()), expected[name], atol=1e-7)
    with adapted.trained(weights) as model:
        assert torch.allclose(logits(model), logits(plain), atol=1e-5)


def with_config(base: Path, folder: Path, **settings: object) -> Path:
    model = load_model(ModelSection(name=str(base)))
    get_peft_model(model, LoraConfig(**{"r": 2, "target_modules": ["q_proj"], **settings})).save_pretrained(folder)
    return folder


def test_whole_layers_beside_the_adapter(tiny_models, tmp_path: Path) -> None:
    base = tiny_models("llama")  # whose head is its own
    adapter = with_config(base, tmp_path / "adapter", modules_to_save=["lm_head"])
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    (name,) = (name for name in tensors if "lm_head" in name)
    tensors[name] += 0.5
    save_file(tensors, file, metadata={"format": "pt"})
    adapted, weights = opened(base, tmp_path / "scratch", adapter)
    assert torch.equal(adapted.merged("lm_head.weight", weights["lm_head.weight"]), tensors[name])
    expected = merged_by_peft(base, adapter)
    plain = load_model(ModelSection(name=str(base)))
    plain.load_state_dict(expected)
    with adapted.trained(weights) as model:
        assert torch.allclose(logits(model), logits(plain), atol=1e-6)


REFUSED = {
    "an untied head": ("gemma2", {"modules_to_save": ["embed_tokens"]}, "shares between its input and its output"),
    "an adapter on the embedding": ("llama", {"target_modules": ["embed_tokens"]}, "embed_tokens is a Embedding"),
    "biases": ("llama", {"bias": "all"}, "trains biases"),
    "a changed base": ("llama", {"init_lora_weights": "olora"}, "began with init_lora_weights='olora'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_merged_is_refused_in_a_sentence(case: str, tiny_models, tmp_path: Path) -> None:
    architecture, settings, words = REFUSED[case]
    base = tiny_models(architecture)
    adapter = with_config(base, tmp_path / "adapter", **settings)
    with pytest.raises(UserError, match="which cannot be merged shard by shard") as caught:
        opened(base, tmp_path / "scratch", adapter)
    assert words in caught.value.what


def test_two_adapters_with_the_same_layer_of_their_own(tiny_models, tmp_path: Path) -> None:
    base = tiny_models("llama")
    both = [with_config(base, tmp_path / name, modules_to_save=["lm_head"]) for name in ("one", "two")]
    with pytest.raises(UserError, match=r"Two of the adapters each have a lm_head\.weight of their own"):
        opened(base, tmp_path / "scratch", *both)


def test_added_tokens(tiny_models, tmp_path: Path) -> None:
    base = tiny_models("llama")
    model = load_model(ModelSection(name=str(base)))
    rows = model.get_input_embeddings().num_embeddings
    model.resize_token_embeddings(rows + 2)
    saved = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
    get_peft_model(model, saved).save_pretrained(tmp_path / "adapter")
    with pytest.raises(UserError, match=f"with {rows + 2} rows; the base model has {rows}") as caught:
        opened(base, tmp_path / "scratch", tmp_path / "adapter")
    assert "--base FOLDER" in caught.value.fix
    resized = load_model(ModelSection(name=str(base)))
    resized.resize_token_embeddings(rows + 2)
    resized.save_pretrained(tmp_path / "resized")
    adapted, _ = opened(tmp_path / "resized", tmp_path / "other scratch", tmp_path / "adapter")
    assert adapted.replaced.keys() == {"model.embed_tokens.weight", "lm_head.weight"}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_adapter_with_values_that_are_no_numbers(value: float, tiny_models, tmp_path: Path) -> None:
    base = tiny_models("llama")
    adapter = save_adapter(base, tmp_path / "adapter")
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    name = sorted(tensors)[3]
    tensors[name][0, 0] = value
    save_file(tensors, file)
    with pytest.raises(UserError, match="has values that are no numbers") as caught:
        opened(base, tmp_path / "scratch", adapter)
    assert caught.value.why == f"1 of its {len(tensors)} tensors, such as {name}."


def test_an_adapter_of_another_model(tiny_models, tmp_path: Path) -> None:
    adapter = save_adapter(tiny_models("gpt2"), tmp_path / "adapter")
    with pytest.raises(UserError, match="cannot be put on this model"):
        opened(tiny_models("llama"), tmp_path / "scratch", adapter)


@pytest.mark.parametrize(("size", "message"), [(None, "has no weights"), (40, "cannot be read")])
def test_an_adapter_without_whole_weights(size: int | None, message: str, tiny_models, tmp_path: Path) -> None:
    adapter = save_adapter(tiny_models("gpt2"), tmp_path / "adapter")
    file = adapter / "adapter_model.safetensors"
    content = file.read_bytes()
    file.unlink()
    if size is not None:
        file.write_bytes(content[:size])
    with pytest.raises(UserError, match=message) as caught:
        opened(tiny_models("gpt2"), tmp_path / "scratch", adapter)
    assert caught.value.fix == "Copy or download the adapter again."
