"""The local Hub is spoken to by the libraries' own clients."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, errors

from tests.hub.conftest import READER, TOKEN
from tests.hub.faults import Fault
from tests.hub.server import Hub
from tests.process import ROOT, run_python

ROUND_TRIP = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from peft import PeftModel
from datasets import Dataset, load_dataset
base, adapter = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(base)
tokenizer = AutoTokenizer.from_pretrained(base)
model.push_to_hub("me/model")
tokenizer.push_to_hub("me/model")
again = AutoModelForCausalLM.from_pretrained("me/model")
assert all(torch.equal(one, other) for one, other in zip(model.parameters(), again.parameters(), strict=True))
assert AutoTokenizer.from_pretrained("me/model")("Why?") == tokenizer("Why?")
tuned = PeftModel.from_pretrained(model, adapter)
tuned.push_to_hub("me/adapter")
other = PeftModel.from_pretrained(again, "me/adapter")
ids = torch.tensor([[5, 6, 7]])
assert torch.equal(tuned(ids).logits, other(ids).logits)
rows = [{"prompt": str(n), "chosen": "a", "rejected": "b"} for n in range(5)]
Dataset.from_list(rows).push_to_hub("me/data")
assert load_dataset("me/data", split="train").to_list() == rows
print("DONE")
"""


@pytest.mark.slow
def test_models_adapters_and_data_sets_come_back_as_they_were(
    tiny_models, tmp_path: Path, client_environment: dict[str, str]
) -> None:
    from tests.adapters import save_adapter

    base = tiny_models("llama")
    adapter = save_adapter(base, tmp_path / "adapter")
    result = run_python("-c", ROUND_TRIP, base, adapter, cwd=tmp_path, **client_environment)
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith("DONE\n")


@pytest.fixture
def api(hub: Hub) -> HfApi:
    api = HfApi(token=TOKEN)
    api.create_repo("me/model")
    return api


def add(path: str, content: bytes) -> CommitOperationAdd:
    return CommitOperationAdd(path, content)


def test_one_commit_has_all_files_and_the_next_sends_only_what_is_new(hub: Hub, api: HfApi) -> None:
    big = bytes(range(256)) * 10
    api.create_commit("me/model", [add("a.safetensors", big), add("b.json", b"{}")], commit_message="one")
    assert hub.files("me/model") == {"a.safetensors": big, "b.json": b"{}"}
    assert hub.uploaded == [hashlib.sha256(big).hexdigest()]
    changes = [add("a.safetensors", big), add("deep/c.txt", b"c"), CommitOperationDelete("b.json")]
    api.create_commit("me/model", changes, commit_message="two")
    assert hub.files("me/model") == {"a.safetensors": big, "deep/c.txt": b"c"}
    assert len(hub.uploaded) == 1
    assert [commit.title for commit in api.list_repo_commits("me/model")] == ["two", "one", "initial commit"]


def test_large_files_come_in_parts(hub: Hub, api: HfApi) -> None:
    hub.part_bytes = 1000
    content = bytes(range(250)) * 10
    api.create_commit("me/model", [add("a.bin", content)], commit_message="parts")
    assert hub.requests.count("upload") == 3
    assert hub.files("me/model")["a.bin"] == content


def test_branches_tags_and_the_tree(hub: Hub, api: HfApi) -> None:
    api.create_branch("me/model", branch="dev")
    commit = api.create_commit("me/model", [add("x/y.txt", b"y")], commit_message="y", revision="dev")
    api.create_tag("me/model", tag="v1", revision="dev")
    refs = api.list_repo_refs("me/model")
    assert {ref.name for ref in refs.branches} == {"main", "dev"}
    assert [(ref.name, ref.target_commit) for ref in refs.tags] == [("v1", commit.oid)]
    assert hub.files("me/model", "main") == {}
    assert [entry.path for entry in api.list_repo_tree("me/model", revision="v1")] == [".gitattributes", "x"]
    deep = {entry.path for entry in api.list_repo_tree("me/model", revision="v1", recursive=True)}
    assert deep == {".gitattributes", "x", "x/y.txt"}


def test_a_commit_on_another_parent_is_refused(api: HfApi) -> None:
    parent = api.model_info("me/model").sha
    api.create_commit("me/model", [add("a", b"a")], commit_message="first", parent_commit=parent)
    with pytest.raises(errors.HfHubHTTPError, match="412"):
        api.create_commit("me/model", [add("b", b"b")], commit_message="second", parent_commit=parent)


def test_tokens_and_roles(hub: Hub, api: HfApi) -> None:
    reader, stranger = HfApi(token=READER), HfApi(token="hf_nobody")
    assert reader.whoami()["auth"]["accessToken"]["role"] == "read"
    api.auth_check("me/model", write=True)
    with pytest.raises(errors.HfHubHTTPError, match="403"):
        reader.auth_check("me/model", write=True)
    with pytest.raises(errors.HfHubHTTPError, match="Invalid user token"):
        stranger.whoami()
    with pytest.raises(errors.HfHubHTTPError, match="403"):
        api.create_repo("others/model")
    api.create_repo("lab/private", private=True)
    assert reader.repo_exists("lab/private") is False
    with pytest.raises(errors.HfHubHTTPError, match="403"):
        reader.create_commit("me/model", [add("a", b"a")], commit_message="no")
    assert hub.files("me/model") == {}


def test_faults_strike_when_they_are_told_to(hub: Hub, api: HfApi, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    hub.faults = [Fault("preupload", status=429, retry_after=7)]
    api.create_commit("me/model", [add("a.bin", b"a")], commit_message="a")
    assert waits == [8.0]  # the client adds a second
    hub.faults = [Fault("upload", "wrong hash")]
    with pytest.raises(RuntimeError, match=r"Error while uploading 'b\.bin'"):
        api.create_commit("me/model", [add("b.bin", b"bc")], commit_message="b")
    assert set(hub.files("me/model")) == {"a.bin"}
    hub.faults = [Fault("commit", "lost")]
    with pytest.raises(Exception, match="disconnected"):
        api.create_commit("me/model", [add("c.bin", b"c")], commit_message="c")
    assert set(hub.files("me/model")) == {"a.bin", "c.bin"}


def test_is_started_by_hand(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.hub.server", "--port", "0", "--folder", str(tmp_path), "--token", TOKEN]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        endpoint = process.stdout.readline().split("HF_ENDPOINT=")[1].split()[0]
        assert HfApi(endpoint=endpoint, token=TOKEN).whoami()["name"] == "me"
    finally:
        process.kill()
        process.communicate()
