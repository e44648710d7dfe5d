from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from lora_dpo.errors import UserError
from lora_dpo.model.base import load_tokenizer
from lora_dpo.model.hashes import file_hash, hash_over, weights_hash
from lora_dpo.model.lineage import (
    check_files,
    check_lineage,
    identify_parent,
    own_hashes,
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
    assert error.why.startswith(f"The weights' hash is {hashes[0]}; it was {hashes[1]}.")


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


def test_a_base_without_weights_that_could_be_compared(adapter: Path, base: Path, capsys) -> None:
    nowhere = {**known(base), "weights_sha256": None, "files": None}
    with pytest.raises(UserError, match="has no weights that could be compared with those that .* was trained on"):
        check_lineage(str(adapter), nowhere)
    record(base, adapter, model=nowhere)
    assert check_lineage(str(adapter), known(base)) is not None
    assert "its base had no files that could be compared" in " ".join(capsys.readouterr().err.split())


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **changes}), encoding="utf-8")


def test_an_adapter_of_other_settings(adapter: Path, base: Path) -> None:
    record(base, adapter, **own_hashes(adapter))
    edit(adapter / "adapter_config.json", base_model_name_or_path="/moved", peft_version="99")
    assert check_lineage(str(adapter), known(base)) is not None
    edit(adapter / "adapter_config.json", lora_alpha=80)
    assert refusal(adapter, base).what == f"The settings in {adapter} are not those that were saved there."


def test_a_base_of_another_configuration(adapter: Path, base: Path) -> None:
    edit(base / "config.json", transformers_version="99", dtype="bfloat16")
    assert check_lineage(str(adapter), known(base)) is not None
    edit(base / "config.json", rms_norm_eps=0.1)
    assert refusal(adapter, base).what == f"The configuration of {base} is not the one that {adapter} was trained with."


def test_a_parent_of_other_settings(adapter: Path, base: Path, tmp_path: Path) -> None:
    parent = save_adapter(base, tmp_path / "parent", seed=5)
    record(base, adapter, parents=[identify_parent(str(parent))])
    edit(parent / "adapter_config.json", lora_alpha=80)
    error = refusal(adapter, base)
    assert error.what == f"{parent} is not the adapter that {adapter} goes on from."
    assert "configuration's hash" in error.why


def test_records_of_older_versions(adapter: Path, base: Path, tmp_path: Path) -> None:
    """They have no hash of a configuration, and hashed all that ends like weights."""
    parent = save_adapter(base, tmp_path / "parent", seed=5)
    for folder in (base, parent, adapter):
        (folder / "training_args.bin").write_bytes(b"not loaded")
    files = {file.name: file_hash(file) for end in ("safetensors", "bin") for file in base.glob(f"*.{end}")}
    assert len(files) == len(known(base)["files"]) + 1
    model = {key: value for key, value in known(base).items() if key != "config_sha256"}
    model |= {"files": files, "weights_sha256": hash_over(files)}

    def before(folder: Path) -> str:
        ending = ("adapter_model.safetensors", "training_args.bin")
        return hash_over({name: file_hash(folder / name) for name in ending})

    old = {"name": str(parent), "weights_sha256": before(parent), "provenance": None}
    record(base, adapter, model=model, parents=[old], weights_sha256=before(adapter))
    assert check_lineage(str(adapter), known(base)) is not None
    (base / "training_args.bin").unlink()
    assert check_lineage(str(adapter), known(base)) is not None
    spoil(max(base.glob("*.safetensors")))
    assert "is another model" in refusal(adapter, base).what


def test_a_base_with_files_that_are_not_loaded(adapter: Path, base: Path) -> None:
    for name in ("consolidated.safetensors", "pytorch_model.bin", "training_args.bin"):
        (base / name).write_bytes(b"x")
    assert check_lineage(str(adapter), known(base)) is not None


def test_the_same_weights_in_other_files(adapter: Path, base: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    AutoModelForCausalLM.from_pretrained(base).save_pretrained(whole)
    tiny_tokenizer("llama").save_pretrained(whole)
    count, first = len(known(base)["files"]), min(known(base)["files"])
    assert refusal(adapter, whole).why.endswith(
        f"It was in {count} files, such as {first}, and is in model.safetensors: the same weights in other files are "
        "not recognised."
    )


def test_what_has_no_record_is_taken_on_trust(adapter: Path, base: Path, capsys) -> None:
    (adapter / "provenance.json").unlink()
    assert check_lineage(str(adapter), known(base)) is None
    said = " ".join(capsys.readouterr().err.split())
    assert f"{adapter} has no provenance.json here, so that its base is taken on trust." in said


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "adapter_config.json"])
def test_a_checkpoint_that_is_not_what_its_manifest_says(adapter: Path, base: Path, file: str) -> None:
    record(base, adapter, weights_sha256=None)
    entries = {path.name: {"sha256": file_hash(path), "bytes": 1} for path in adapter.iterdir()}
    (adapter / "manifest.json").write_text(json.dumps({"files": entries}))
    assert check_lineage(str(adapter), known(base)) is not None
    if file.endswith("json"):
        edit(adapter / file, lora_alpha=80)
    else:
        spoil(adapter / file)
    assert refusal(adapter, base).what == f"{file} in {adapter} is not what was written there."
    (adapter / "manifest.json").write_text('{"name": "a web page\'s"}')
    assert check_lineage(str(adapter), known(base)) is not None
    (adapter / "manifest.json").write_text('{"files": {')
    assert "manifest.json cannot be read" in refusal(adapter, base).what
