"""Which files weights are loaded from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from lora_dpo.errors import UserError
from lora_dpo.model.weights import weight_files

SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


def put(folder: Path, *names: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_text("x")
    return folder


def names(folder: Path) -> list[str]:
    return [file.name for file in weight_files(folder)]


def test_what_is_loaded_and_not_all_that_ends_alike(tmp_path: Path) -> None:
    folder = put(tmp_path / "m", "config.json", "consolidated.safetensors", "training_args.bin")
    assert names(folder) == []
    assert names(put(folder, "pytorch_model.bin")) == ["pytorch_model.bin"]
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": SHARDS[1], "b": SHARDS[0]}}))
    assert names(folder) == SHARDS  # said by the index, whether they are there or not
    assert names(put(folder, "model.safetensors")) == ["model.safetensors"]


def test_an_adapter_s(tmp_path: Path) -> None:
    folder = put(tmp_path / "a", "adapter_config.json", "adapter_model.bin", "training_args.bin")
    assert names(folder) == ["adapter_model.bin"]
    assert names(put(folder, "adapter_model.safetensors")) == ["adapter_model.safetensors"]


def test_transformers_loads_these(tiny_models, tmp_path: Path) -> None:
    """The order is Transformers': the file that it reads is the one that is hashed."""
    folder = tmp_path / "m"
    model = AutoModelForCausalLM.from_pretrained(tiny_models("llama"))
    model.save_pretrained(folder, max_shard_size="100KB")
    assert len(names(folder)) > 1
    state = {name: tensor.clone().contiguous() for name, tensor in model.state_dict().items()}
    torch.save({name: tensor + 1 for name, tensor in state.items()}, folder / "pytorch_model.bin")
    name = "model.norm.weight"

    def loaded() -> float:
        return float(AutoModelForCausalLM.from_pretrained(folder).state_dict()[name][0])

    shard = next(file for file in weight_files(folder) if name in load_file(file))
    tensors = load_file(shard)
    save_file({**tensors, name: tensors[name] + 2}, shard, metadata={"format": "pt"})
    assert loaded() == float(state[name][0]) + 2
    save_file({**state, name: state[name] + 3}, folder / "model.safetensors", metadata={"format": "pt"})
    assert names(folder) == ["model.safetensors"]
    assert loaded() == float(state[name][0]) + 3


def test_an_index_that_cannot_be_read(tmp_path: Path) -> None:
    folder = put(tmp_path / "m", "model.safetensors.index.json")
    with pytest.raises(UserError, match="does not say where the weights are"):
        weight_files(folder)
