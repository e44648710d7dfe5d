"""Small folders that can be published, made without a training."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from lora_dpo.files import write_json, write_text
from lora_dpo.hub.package import Package
from lora_dpo.hub.packing import Wishes, pack
from lora_dpo.hub.subject import find_subject


def model(folder: Path, *, value: float = 1.0, shards: int = 1, **config: str) -> Path:
    """Makes a folder that looks like a model, with weights of this value."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"model-{number:05}-of-{shards:05}.safetensors" for number in range(1, shards + 1)]
    names = ["model.safetensors"] if shards == 1 else names
    for number, name in enumerate(names):
        save_file({f"layer.{number}": np.full(500, value + number, np.float32)}, folder / name)
    if shards > 1:
        places = {f"layer.{number}": name for number, name in enumerate(names)}
        write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": places})
    write_json(folder / "config.json", {"model_type": "llama", **config})
    write_text(folder / "tokenizer.json", json.dumps({"vocab": {"/home/somebody/x": 0}}))
    return folder


def adapter(folder: Path, base: str = "org/base", *, value: float = 1.0) -> Path:
    """Makes a folder that looks like an adapter."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"lora_A": np.full(500, value, np.float32)}, folder / "adapter_model.safetensors")
    write_json(folder / "adapter_config.json", {"base_model_name_or_path": base, "peft_type": "LORA"})
    return folder


def package(folder: Path, repo: str = "me/model", token: str | None = None, **wishes) -> Package:
    """Returns what would be published of a folder."""
    return pack(find_subject(str(folder), None), repo, Wishes(**wishes), token)


def part_of(record: dict) -> dict:
    """What a merged model says of an adapter in it."""
    return {"name": "x", "weights_sha256": record["weights_sha256"], "provenance": record}


def contents(package: Package) -> dict[str, bytes]:
    """Returns what a repository must hold after a package was published."""
    return {file.path: file.read() for file in package.files}
