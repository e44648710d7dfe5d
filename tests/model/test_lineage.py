from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from lora_dpo.errors import UserError
from lora_dpo.model.base import load_tokenizer
from lora_dpo.model.hashes import weights_hash
from lora_dpo.model.lineage import (
    check_files,
    check_lineage,
    identify_parent,
    tokenizer_hash,
)
from lora_dpo.model.record import write_record
from lora_dpo.recipe.schema import ModelSection
from tests.adapters import known, record, save_adapter, spoil
from tests.tiny import tiny_tokenizer


@pytest.fixture
def base(tiny_models, tmp_path: Path) -> Path:
    """A model in two files, with its tokenizer."""
    model = AutoModelForCausalLM.from_pretrained(tiny_models("llama"))
    model.save_pretrained(tmp_path / "base", max_shard_size="100KB")
    tiny_tokenizer("llama").save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    """An adapter that says where it comes from."""
    folder = save_adapter(base, tmp_path / "adapter")
    record(base, folder)
    return folder


def refusal(adapter: Path, base: Path) -> UserError:
    with pytest.raises(UserError) as caught:
        check_lineage(str(adapter), known(base))
    return caught.value


def test_what_a_base_is_known_by(base: Path, tmp_path: Path) -> None:
    found = known(base)
    files = sorted(base.glob("*.safetensors"))
    assert len(files) > 1
    assert found["files"] == {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    assert found["weights_sha256"] == weights_hash(str(base), None)
    assert (found["name"], found["revision"], found["provenance"]) == (str(base), None, None)
    write_record(base, {"stage": "merge", "model": {"weights_sha256": "ab"}})
    assert known(base)["provenance"]["stage"] == "merge"


def test_what_has_not_changed_is_taken(adapter: Path, base: Path, tmp_path: Path) -> None:
    assert check_lineage(str(adapter), known(base))["stage"] == "dpo"
    moved = Path(shutil.move(base, tmp_path / "moved"))
    assert check_lineage(str(adapter), known(moved)) is not None
    (adapter / "provenance.json").unlink()
    assert check_lineage(str(adapter), known(moved)) is None


def test_another_base(adapter: Path, base: Path, tiny_models) -> None:
    error = refusal(adapter, tiny_models("gpt2"))
    assert error.what == f"{tiny_models('gpt2')} is another model than the one that {adapter} was trained on."
    hashes = [weights_hash(str(folder), None)[:12] for folder in (tiny_models("gpt2"), base)]
    assert error.why == f"The weights' hash is {hashes[0]}; it was {hashes[1]}."


def test_a_damaged_shard_is_named(adapter: Path, base: Path) -> None:
    files = sorted(base.glob("*.safetensors"))
    spoil(files[1])
    assert refusal(adapter, base).why.endswith(f"Of {len(files)} files 1 differ: {files[1].name}.")


def test_another_tokenizer(adapter: Path, base: Path) -> None:
    before = tokenizer_hash(load_tokenizer(ModelSection(name=str(base))))
    file = base / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    vocabulary = content["model"]["vocab"]
    one, other = sorted(vocabulary)[100:102]
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    file.write_text(json.dumps(content), encoding="utf-8")
    after = tokenizer_hash(load_tokenizer(ModelSection(name=str(base))))
    error = refusal(adapter, base)
    assert error.what == f"The tokenizer of {base} is not the one that {adapter} was trained with."
    assert f"Its hash is {after[:12]}; it was {before[:12]}." in error.why


def test_a_template_or_padding_makes_no_other_tokenizer() -> None:
    tokenizer = tiny_tokenizer("llama")
    before = tokenizer_hash(tokenizer)
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    tokenizer.pad_token = tokenizer.eos_token
    assert tokenizer_hash(tokenizer) == before
    tokenizer.add_tokens(["<new>"])
    assert tokenizer_hash(tokenizer) != before


def test_an_adapter_that_is_not_what_was_saved(adapter: Path, base: Path) -> None:
    before = weights_hash(str(adapter), None)
    spoil(adapter / "adapter_model.safetensors")
    error = refusal(adapter, base)
    assert error.what == f"The weights in {adapter} are not those that were saved there."
    assert before[:12] in error.why
    assert weights_hash(str(adapter), None)[:12] in error.why


def test_a_changed_parent(adapter: Path, base: Path, tmp_path: Path) -> None:
    parent = save_adapter(base, tmp_path / "parent", seed=5)
    record(base, adapter, parents=[identify_parent(str(parent))])
    assert check_lineage(str(adapter), known(base)) is not None
    spoil(parent / "adapter_model.safetensors")
    error = refusal(adapter, base)
    assert error.what == f"{parent} is not the adapter that {adapter} goes on from."
    shutil.rmtree(parent)
    assert check_lineage(str(adapter), known(base)) is not None


def test_a_run_s_parent_is_known_by_its_adapter(adapter: Path, base: Path, tmp_path: Path) -> None:
    shutil.copytree(adapter, tmp_path / "runs" / "first" / "adapter")
    found = identify_parent(str(tmp_path / "runs" / "first"))
    assert found["weights_sha256"] == weights_hash(str(adapter), None)
    assert found["provenance"]["stage"] == "dpo"


def test_a_damaged_file_of_the_hub_s_cache(base: Path, tmp_path: Path) -> None:
    file = next(base.glob("*.safetensors"))
    blob = tmp_path / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
    blob.parent.mkdir()
    shutil.move(file, blob)
    file.symlink_to(blob)
    check_files("org/base", sorted(base.glob("*.safetensors")))
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.write_bytes(content)
    with pytest.raises(UserError, match=f"{file.name} of org/base is damaged") as caught:
        check_files("org/base", sorted(base.glob("*.safetensors")))
    assert blob.name[:12] in caught.value.why


def test_a_model_that_has_no_files(adapter: Path, base: Path, capsys) -> None:
    nowhere = {**known(base), "weights_sha256": None, "files": None}
    assert check_lineage(str(adapter), nowhere) is not None
    assert "its base has no files that could be compared" in " ".join(capsys.readouterr().err.split())
