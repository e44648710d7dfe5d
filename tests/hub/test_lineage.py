"""What is on the Hub is here, all of one commit, before it is compared."""

from __future__ import annotations

import json
import shutil
import uuid
from pathlib import Path

import pytest
import torch
import transformers
from huggingface_hub import HfApi, constants, snapshot_download
from transformers import AutoModelForCausalLM

from lora_dpo.errors import UserError
from lora_dpo.evaluation.asked import ask
from lora_dpo.inference.chat_model import ChatModel
from lora_dpo.inference.found import find_model
from lora_dpo.merging.merge import Request, merge
from lora_dpo.model.base import load_tokenizer
from lora_dpo.model.lineage import check_lineage, identify, identify_parent
from lora_dpo.model.location import find_file
from lora_dpo.model.record import read_record, write_record
from lora_dpo.model.weights import fetched
from lora_dpo.preparation import fetch_weights
from lora_dpo.recipe.schema import ModelSection
from lora_dpo.training.resume import origin_of
from tests.adapters import known, record, save_adapter
from tests.hub.faults import Fault
from tests.hub.server import Hub
from tests.small import small_recipe
from tests.tiny import tiny_tokenizer

SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


def put(folder: Path, *names: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_text("x")
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty local cache."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(transformers.utils.hub, "_hf_api", None)  # it may be that of an earlier test's Hub
    return tmp_path / "cache"


@pytest.fixture
def repo() -> str:
    """A name that no test has used: the Hub's client remembers in the process where a branch is."""
    return f"me/base-{uuid.uuid4().hex[:8]}"


def pushed(folder: Path, name: str) -> str:
    api = HfApi(endpoint=constants.ENDPOINT)
    api.create_repo(name, exist_ok=True)
    api.upload_folder(repo_id=name, folder_path=str(folder))
    return str(api.repo_info(name).sha)


def test_only_what_is_loaded_is_fetched(hub: Hub, repo: str, cache: Path, tmp_path: Path) -> None:
    folder = put(tmp_path / "m", "config.json", *SHARDS, "consolidated.safetensors", "pytorch_model.bin", "notes.txt")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": SHARDS[1], "b": SHARDS[0]}}))
    commit = pushed(folder, repo)
    found = fetched(repo, None)
    assert found.name == commit
    assert sorted(file.name for file in found.iterdir()) == sorted(
        ["config.json", "model.safetensors.index.json", *SHARDS]
    )
    (folder / "config.json").write_text('{"another": 1}')
    pushed(folder, repo)
    assert (fetched(repo, commit) / "config.json").read_text() == "x"
    assert (fetched(repo, None) / "config.json").read_text() != "x"


def test_without_network(hub: Hub, repo: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = put(tmp_path / "m", "config.json", "model.safetensors")
    pushed(folder, repo)
    words = f"{repo} is not in the local cache, and the Hub cannot be reached"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=words):
        fetched(repo, None)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    found = fetched(repo, None)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fetched(repo, None) == found
    (found / "model.safetensors").unlink()
    with pytest.raises(UserError, match=words):
        fetched(repo, None)


@pytest.fixture
def base(tiny_models, tmp_path: Path) -> Path:
    """A model, as it lies on the Hub too."""
    return Path(shutil.copytree(tiny_models("llama"), tmp_path / "base"))


@pytest.fixture
def other(base: Path, tmp_path: Path) -> Path:
    """A model like it, with other weights."""
    model = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        model.model.norm.weight.mul_(1.5)
    model.save_pretrained(tmp_path / "other")
    tiny_tokenizer("llama").save_pretrained(tmp_path / "other")
    return tmp_path / "other"


def trained_on_the_hub(base: Path, repo: str, folder: Path, commit: str | None) -> Path:
    """Saves an adapter that was trained on `repo`."""
    save_adapter(base, folder)
    recipe = small_recipe(repo, Path("runs")).model_dump(mode="json")
    record(base, folder, model={**known(base), "name": repo, "revision": commit}, recipe=recipe)
    return folder


def forget(cache: Path) -> None:
    """Leaves what a new machine has."""
    shutil.rmtree(cache, ignore_errors=True)


def test_another_base_that_is_not_here_yet_is_refused(
    hub: Hub, repo: str, cache: Path, base: Path, other: Path, tmp_path: Path
) -> None:
    pushed(base, repo)
    adapter = trained_on_the_hub(base, repo, tmp_path / "adapter", None)
    section = ModelSection(name=repo)
    assert check_lineage(str(adapter), identify(section, load_tokenizer(section))) is not None
    pushed(other, repo)
    forget(cache)
    words = f"{repo} is another model than the one that .*adapter was trained on"
    with pytest.raises(UserError, match=words):
        check_lineage(str(adapter), identify(section, load_tokenizer(section)))
    forget(cache)
    with pytest.raises(UserError, match=words):
        ChatModel(find_model(str(adapter)))
    forget(cache)
    with pytest.raises(UserError, match=words):
        merge(Request([str(adapter)], tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_the_commit_that_was_trained_on_is_taken(
    hub: Hub, repo: str, cache: Path, base: Path, other: Path, tmp_path: Path
) -> None:
    commit = pushed(base, repo)
    adapter = trained_on_the_hub(base, repo, tmp_path / "adapter", commit)
    moved = pushed(other, repo)
    assert find_model(str(adapter)).model.revision == commit
    assert find_model(str(adapter), overrides=["model.revision=main"]).model.revision == "main"
    report = merge(Request([str(adapter)], tmp_path / "out"))
    assert report["base"] == {key: known(base)[key] for key in ("weights_sha256",)} | {
        "name": repo,
        "revision": commit,
    }
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": repo}))
    assert ask(str(adapter), data="bundled/misconceptions").recipe.model.revision == commit
    section = ModelSection(name=repo)
    with pytest.raises(UserError) as caught:
        check_lineage(str(adapter), identify(section, load_tokenizer(section)))
    assert f"model.revision={commit}" in caught.value.fix
    assert identify(section, load_tokenizer(section))["revision"] == moved


def test_a_merged_base_at_a_revision_has_the_record_of_that_revision(
    hub: Hub, cache: Path, base: Path, tmp_path: Path
) -> None:
    hashes = []
    for version in ("v1", "v2"):
        save_adapter(base, tmp_path / f"adapter {version}", seed=len(version) + len(hashes))
        merge(Request([str(tmp_path / f"adapter {version}")], tmp_path / version, base=str(base)))
        commit = pushed(tmp_path / version, "me/merged")
        HfApi(endpoint=constants.ENDPOINT).create_tag("me/merged", tag=version, revision=commit)
        hashes.append(known(tmp_path / version)["weights_sha256"])
    assert hashes[0] != hashes[1]
    for place, version in enumerate(("v1", "v2")):
        section = ModelSection(name="me/merged", revision=version)
        found = identify(section, load_tokenizer(section))
        assert (found["weights_sha256"], found["provenance"]["weights_sha256"]) == (hashes[place], hashes[place])
        assert read_record("me/merged", version)["weights_sha256"] == hashes[place]
    on_top = save_adapter(tmp_path / "v1", tmp_path / "on top")
    section = ModelSection(name="me/merged", revision="v1")
    recipe = small_recipe("me/merged", Path("runs")).model_dump(mode="json")
    record(tmp_path / "v1", on_top, model=identify(section, load_tokenizer(section)), recipe=recipe)
    assert merge(Request([str(on_top)], tmp_path / "out"))["top1_agreement"] == 1.0


def test_an_adapter_on_the_hub_is_whole_before_it_is_taken(hub: Hub, cache: Path, base: Path, tmp_path: Path) -> None:
    adapter = save_adapter(base, tmp_path / "adapter")
    record(base, adapter)
    pushed(adapter, "me/adapter")
    assert check_lineage("me/adapter", known(base)) is not None
    assert identify_parent("me/adapter")["weights_sha256"] == identify_parent(str(adapter))["weights_sha256"]
    save_adapter(base, adapter, seed=9)
    pushed(adapter, "me/adapter")
    forget(cache)
    with pytest.raises(UserError, match="The weights in me/adapter are not those that were saved there"):
        check_lineage("me/adapter", known(base))


def test_a_record_that_cannot_be_fetched(
    hub: Hub, cache: Path, base: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = save_adapter(base, tmp_path / "adapter")
    record(base, adapter)
    pushed(adapter, "me/adapter")
    snapshot_download("me/adapter", allow_patterns=["adapter*"])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="me/adapter is not in the local cache, and the Hub cannot be reached"):
        check_lineage("me/adapter", known(base))  # the cache knows that there is one
    shutil.rmtree(next(cache.glob("models--me--adapter")) / "trees")
    from huggingface_hub import _tree_cache

    _tree_cache._IN_MEMORY_TREE_CACHE.clear()
    assert check_lineage("me/adapter", known(base)) is None
    said = " ".join(capsys.readouterr().err.split())
    assert "me/adapter has no provenance.json here, so that its base is taken on trust." in said


def test_a_hub_that_fails_is_not_taken_for_one_that_has_no_record(
    hub: Hub, repo: str, cache: Path, tmp_path: Path
) -> None:
    pushed(put(tmp_path / "m", "config.json"), repo)
    assert find_file(repo, "provenance.json") is None
    write_record(tmp_path / "m", {"model": {"weights_sha256": None}})
    pushed(tmp_path / "m", repo)
    hub.faults = [Fault("resolve", times=-1)]
    with pytest.raises(UserError, match=f"{repo} is not in the local cache, and the Hub cannot be reached"):
        find_file(repo, "provenance.json")


def test_what_a_run_begins_with_is_known_from_its_first_start(hub: Hub, repo: str, cache: Path, base: Path) -> None:
    """What was fetched by the training itself would be another model when it is resumed."""
    pushed(base, repo)
    recipe = small_recipe(repo, Path("runs"))
    load_tokenizer(recipe.model)
    fetch_weights(recipe)
    assert origin_of(recipe)["model.name"] == known(base)["weights_sha256"]
