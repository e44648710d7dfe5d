from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import shutil
from pathlib import Path

import lora_dpo
from lora_dpo.model.base import load_model
from lora_dpo.recipe.batch import BatchPlan
from lora_dpo.training.provenance import provenance, weights_hash
from tests.small import small_recipe


def test_says_what_the_run_was_made_of(tiny_models, tmp_path: Path) -> None:
    recipe = small_recipe(tiny_models("gpt2"), tmp_path, run={"seed": 5})
    data = {"splits": {"train": {"hash": "a", "pairs": 3}, "validation": {"hash": "b"}, "test": {"hash": "c"}}}
    found = provenance(recipe, BatchPlan(16, 4, 2, 2), data, load_model(recipe.model))
    assert found["schema_version"] == 1
    assert found["code"]["version"] == lora_dpo.__version__
    assert found["python"] == platform.python_version()
    assert found["packages"]["trl"] == importlib.metadata.version("trl")
    assert found["packages"].keys() >= {"torch", "transformers", "trl", "peft", "accelerate", "datasets"}
    assert found["model"] == {
        "name": str(tiny_models("gpt2")),
        "revision": None,
        "weights_sha256": weights_hash(str(tiny_models("gpt2")), None),
    }
    assert found["data"] == {"train": "a", "validation": "b", "test": "c"}
    assert (found["seed"], found["world_size"], found["strategy"]) == (5, 2, "single")
    assert found["batch"] == {"global": 16, "micro": 4, "accumulation": 2}
    json.dumps(found)


def test_weights_hash_by_hand(tmp_path: Path) -> None:
    (tmp_path / "b.safetensors").write_bytes(b"second")
    (tmp_path / "a.safetensors").write_bytes(b"first")
    (tmp_path / "config.json").write_text("{}")
    lines = "".join(
        f"{name} {hashlib.sha256(content).hexdigest()}\n"
        for name, content in (("a.safetensors", b"first"), ("b.safetensors", b"second"))
    )
    assert weights_hash(str(tmp_path), None) == hashlib.sha256(lines.encode()).hexdigest()


def test_weights_hash_follows_the_weights_only(tiny_models, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_models("gpt2"), tmp_path / "copy"))
    original = weights_hash(str(tiny_models("gpt2")), None)
    assert weights_hash(str(copy), None) == original
    (copy / "tokenizer_config.json").unlink()
    assert weights_hash(str(copy), None) == original
    weights = copy / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert weights_hash(str(copy), None) != original


def test_file_of_the_hub_s_cache_is_named_by_its_hash(tmp_path: Path) -> None:
    blob = tmp_path / "blobs" / ("ab" * 32)
    blob.parent.mkdir()
    blob.write_bytes(b"never read")
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    (snapshot / "model.safetensors").symlink_to(blob)
    line = f"model.safetensors {'ab' * 32}\n"
    assert weights_hash(str(snapshot), None) == hashlib.sha256(line.encode()).hexdigest()


def test_folder_without_weights(tmp_path: Path) -> None:
    assert weights_hash(str(tmp_path), None) is None
