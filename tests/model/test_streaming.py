from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from lora_dpo.errors import UserError
from lora_dpo.model.streaming import Changed, base_name, lent, open_model
from lora_dpo.recipe.schema import ModelSection
from tests.tiny import ARCHITECTURES

IDS = torch.arange(30, 60)[None]


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def opened(folder: Path, scratch: Path):
    return open_model(ModelSection(name=str(folder)), scratch)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_computes_what_a_loaded_model_computes(architecture: str, tiny_models, tmp_path: Path) -> None:
    folder = tiny_models(architecture)
    model, weights = opened(folder, tmp_path / "scratch")
    with lent(model, weights):
        found = logits(model)
    attention = model.config._attn_implementation
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=attention).eval()
    assert torch.equal(found, logits(plain))


def test_between_calls_no_weight_is_in_memory(tiny_models, tmp_path: Path) -> None:
    model, weights = opened(tiny_models("llama"), tmp_path)
    seen = []

    def look(module: torch.nn.Module, _: object) -> None:
        seen.append(sum(p.untyped_storage().nbytes() for p in model.parameters()) - module.weight.nbytes)

    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(look)
    with lent(model, weights):
        logits(model)
    own = 4 * sum(1 for _ in model.parameters())  # one number each
    assert len(seen) == 15
    assert max(seen) <= own
    assert sum(p.untyped_storage().nbytes() for p in model.parameters()) == own


def test_a_name_is_looked_for_without_its_weight(tiny_models, tmp_path: Path) -> None:
    model, weights = opened(tiny_models("llama"), tmp_path)
    read: list[str] = []
    with lent(model, Changed(weights, lambda name, weight: read.append(name) or weight)):
        assert read == []
        logits(model)
    assert "model.embed_tokens.weight" in read
    assert sorted(read) == sorted(set(read)), "each weight once in a pass"


def test_other_weights_are_lent_to_the_same_modules(tiny_models, tmp_path: Path) -> None:
    model, weights = opened(tiny_models("llama"), tmp_path)
    changed = Changed(weights, lambda name, weight: weight * 2 if name == "lm_head.weight" else weight)
    assert len(changed) == len(weights)
    assert set(changed) == set(weights)
    with lent(model, weights):
        before = logits(model)
    with lent(model, changed):
        assert torch.allclose(logits(model), 2 * before)
    with lent(model, weights):
        assert torch.equal(logits(model), before)


def test_weights_in_another_precision_are_widened(tiny_models, tmp_path: Path) -> None:
    AutoModelForCausalLM.from_pretrained(tiny_models("llama")).bfloat16().save_pretrained(tmp_path / "half")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "half", dtype=torch.float32)
    model, weights = opened(tmp_path / "half", tmp_path / "scratch")
    with lent(model, weights):
        found = logits(model)
    assert found.dtype == torch.float32
    assert torch.equal(found, logits(plain))


def test_a_model_that_lacks_a_weight(tiny_models, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_models("llama"))
    model.save_pretrained(tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"has no model\.layers\.1\.mlp\.up_proj\.weight"):
        opened(tmp_path / "model", tmp_path / "scratch")


def test_names_below_adapters() -> None:
    for name in ("base_layer.weight", "original_module.weight", "weight"):
        assert base_name(f"base_model.model.model.layers.0.q_proj.{name}") == "model.layers.0.q_proj.weight"
    assert base_name("lm_head.weight") == "lm_head.weight"


def test_weights_in_several_files_and_under_other_names(tiny_models, tmp_path: Path) -> None:
    """GPT-2's own repository leaves out the prefix `transformer.`."""
    folder = tmp_path / "model"
    plain = AutoModelForCausalLM.from_pretrained(tiny_models("gpt2"))
    plain.save_pretrained(folder)
    tensors = {name.removeprefix("transformer."): t for name, t in load_file(folder / "model.safetensors").items()}
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    files = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in files.items():
        save_file({name: tensors[name].contiguous() for name in part}, folder / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, part in files.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    model, weights = opened(folder, tmp_path / "scratch")
    with lent(model, weights):
        assert torch.equal(logits(model), logits(plain.eval()))
    place = weights.index["transformer.h.0.attn.c_attn.weight"]
    assert (place["weight_name"], Path(place["safetensors_file"]).parent) == ("h.0.attn.c_attn.weight", folder)
