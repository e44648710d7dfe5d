from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest

from lora_dpo.errors import UserError
from lora_dpo.model import hashes
from lora_dpo.model.cache import cache_folder
from lora_dpo.model.hashes import config_hash, file_hash, weights_hash


def test_weights_hash_by_hand(tmp_path: Path) -> None:
    (tmp_path / "b.safetensors").write_bytes(b"second")
    (tmp_path / "a.safetensors").write_bytes(b"first")
    (tmp_path / "consolidated.safetensors").write_bytes(b"both once more")
    index = {"weight_map": {"x": "b.safetensors", "y": "a.safetensors", "z": "b.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
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


def test_where_there_are_no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert weights_hash(str(tmp_path), None) is None
    assert weights_hash("nobody/has-this-model", None) is None
    (tmp_path / "model.safetensors").write_bytes(b"of another model")
    monkeypatch.chdir(tmp_path)
    assert weights_hash("", None) is None  # a model that was made in memory is not the working directory's


def test_further_files_that_count(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "config.json").write_text("{}")
    both = weights_hash(str(tmp_path), None, ("*.json",))
    assert both != weights_hash(str(tmp_path), None)
    (tmp_path / "config.json").write_text('{"rope_theta": 1}')
    assert weights_hash(str(tmp_path), None, ("*.json",)) != both


def test_a_part_that_is_missing(tmp_path: Path, hub_cache) -> None:
    index = json.dumps({"weight_map": {"x": "model-1.safetensors"}})
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(UserError, match=r"has no model-1\.safetensors, in which a part of the weights is to be"):
        weights_hash(str(tmp_path), None)
    hub_cache("org/base", {"config.json": "{}", "model.safetensors.index.json": index})
    assert weights_hash("org/base", None) is None  # not here yet


def test_what_a_configuration_means(tmp_path: Path) -> None:
    def hash_of(name: str, content: dict) -> str | None:
        (tmp_path / name).write_text(json.dumps(content))
        return config_hash(tmp_path)

    assert config_hash(tmp_path) is None
    text = {"rms_norm_eps": 1e-6, "dtype": "float32"}
    model = hash_of("config.json", {"eps": 1, "text_config": text, "_name_or_path": "a", "transformers_version": "5.1"})
    moved = {"text_config": text | {"dtype": "bfloat16"}, "eps": 1, "_name_or_path": "b", "transformers_version": "5.2"}
    assert hash_of("config.json", moved) == model
    assert hash_of("config.json", {"eps": 1, "text_config": text | {"rms_norm_eps": 1e-5}}) != model
    layers = {"lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}
    adapter = hash_of("adapter_config.json", layers | {"base_model_name_or_path": "/a", "peft_version": "0.21"})
    assert hash_of("adapter_config.json", layers | {"target_modules": ["v_proj", "q_proj"]}) == adapter
    assert hash_of("adapter_config.json", layers | {"lora_alpha": 80}) != adapter


@pytest.fixture
def settled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Returns a file that counts as unchanged for long."""
    monkeypatch.setattr(hashes, "_SETTLED_NS", -1)
    file = tmp_path / "weights.bin"
    file.write_bytes(b"first")
    return file


def memories() -> list[Path]:
    return list((cache_folder() / "hashes").glob("*"))


def test_a_file_is_read_once(settled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = hashlib.sha256(b"first").hexdigest()
    assert file_hash(settled) == expected
    (memory,) = memories()
    monkeypatch.setattr(hashlib, "file_digest", None)
    assert file_hash(settled) == expected
    memory.write_text("{")
    with pytest.raises(TypeError):  # read again
        file_hash(settled)


def test_a_changed_file_is_read_again(settled: Path) -> None:
    file_hash(settled)
    times = settled.stat()
    settled.write_bytes(b"other")  # as long
    while settled.stat().st_ctime_ns == times.st_ctime_ns:  # a tick of the file system's clock
        os.utime(settled, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert file_hash(settled) == hashlib.sha256(b"other").hexdigest()


def test_a_file_that_may_still_be_written_is_not_remembered(tmp_path: Path) -> None:
    file = tmp_path / "weights.bin"
    file.write_bytes(b"first")
    assert file_hash(file) == hashlib.sha256(b"first").hexdigest()
    assert memories() == []


def test_a_cache_that_cannot_be_written(settled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "no folder").write_text("")
    monkeypatch.setenv("LORA_DPO_CACHE", str(tmp_path / "no folder"))
    assert file_hash(settled) == hashlib.sha256(b"first").hexdigest()
