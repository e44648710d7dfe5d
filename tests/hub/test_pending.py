"""`lora-dpo push --prepare` where there is no network, and `--pending` where there is one."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, HfApi, constants

from lora_dpo.errors import UserError
from lora_dpo.hub import push as push_module
from lora_dpo.hub.packing import Wishes
from lora_dpo.hub.pending import pending_folder
from lora_dpo.hub.push import Manner, push, push_pending
from tests.hub.conftest import TOKEN
from tests.hub.folders import adapter, contents, model, package
from tests.hub.server import Hub

YES, PREPARE = Manner(yes=True), Manner(prepare=True)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model's folder, `model` in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    return model(Path("model"))


def test_what_was_prepared_is_sent_later_as_it_was(hub: Hub, folder: Path, monkeypatch, capsys) -> None:
    adapter(Path("adapter"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_TOKEN", "")
    push("model", "me/model", Wishes(tag="v1"), PREPARE)
    push("adapter", "me/adapter", Wishes(private=False), PREPARE)
    push("adapter", "me/adapter", Wishes(private=False, licence="mit"), PREPARE)  # in place of the one before
    assert hub.requests == []
    assert "lora-dpo push --pending" in capsys.readouterr().err
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    push_pending(YES)
    assert hub.files("me/model") == contents(package(folder))
    assert hub.files("me/adapter") == contents(package(Path("adapter"), "me/adapter", licence="mit"))
    assert hub.repository("me/adapter").state["private"] is False
    assert set(hub.repository("me/model").state["tags"]) == {"v1"}
    capsys.readouterr()
    push_pending(YES)
    assert "No push is pending" in capsys.readouterr().err


def test_what_has_changed_since_it_was_prepared_is_refused_and_the_rest_is_sent(hub: Hub, folder: Path, capsys) -> None:
    adapter(Path("adapter"))
    push("model", "me/model", Wishes(), PREPARE)
    push("adapter", "me/adapter", Wishes(), PREPARE)
    model(folder, value=2.0)
    with pytest.raises(UserError, match="1 of 2 pending pushes failed: model--me--model"):
        push_pending(YES)
    assert "model.safetensors has changed since the push to me/model was prepared" in capsys.readouterr().err
    assert hub.files("me/model") == {}
    assert hub.files("me/adapter") != {}
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="1 of 1"):
        push_pending(YES)
    assert "is gone since" in capsys.readouterr().err
    model(folder)
    push_pending(YES)
    assert hub.files("me/model") == contents(package(folder))


def test_a_pending_push_that_is_damaged_does_not_stop_the_others(hub: Hub, folder: Path, capsys) -> None:
    push("model", "me/model", Wishes(), PREPARE)
    push("model", "me/other", Wishes(), PREPARE)
    (pending_folder() / "model--me--model" / "push.json").write_text(json.dumps({"schema_version": 7}))
    with pytest.raises(UserError, match="1 of 2 pending pushes failed: model--me--model"):
        push_pending(YES)
    assert "its version is 7, not 2" in capsys.readouterr().err
    assert hub.files("me/other") == contents(package(folder, "me/other"))


def test_what_a_job_prepares_while_an_older_one_is_sent_is_kept(hub: Hub, folder: Path, monkeypatch) -> None:
    push("model", "me/model", Wishes(), PREPARE)
    send = push_module.send

    def send_while_a_job_ends(*words) -> None:
        send(*words)
        push("model", "me/model", Wishes(licence="mit"), PREPARE)

    monkeypatch.setattr(push_module, "send", send_while_a_job_ends)
    push_pending(YES)
    assert hub.files("me/model") == contents(package(folder))
    monkeypatch.setattr(push_module, "send", send)
    push_pending(YES)
    assert hub.files("me/model") == contents(package(folder, licence="mit"))
    assert not list(pending_folder().glob("*/push.json"))


def test_a_token_that_the_job_did_not_know_is_not_published(hub: Hub, folder: Path, monkeypatch, capsys) -> None:
    token = "plain-word-as-token"
    hub.users[token] = hub.users[TOKEN]
    model(folder, note=token)
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setattr("lora_dpo.hub.push.find_token", lambda: None)
    push("model", "me/model", Wishes(), PREPARE)
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(UserError, match="1 of 1"):
        push_pending(YES)
    said = capsys.readouterr().err
    assert "config.json:3: your token" in said
    assert token not in said
    assert hub.files("me/model") == {}


def test_it_goes_to_the_hub_that_it_was_prepared_for(hub: Hub, folder: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "https://other.example.org")
    push("model", "me/model", Wishes(), PREPARE)
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    with pytest.raises(UserError, match="1 of 1"):
        push_pending(YES)
    assert "Set HF_ENDPOINT=https://other.example.org" in capsys.readouterr().err
    assert hub.requests == []


def test_what_may_be_overwritten_is_kept_too(hub: Hub, folder: Path, capsys) -> None:
    HfApi(token=TOKEN).create_repo("me/model")
    operations = [CommitOperationAdd("README.md", b"# Mine")]
    HfApi(token=TOKEN).create_commit("me/model", operations, commit_message="by hand")
    push("model", "me/model", Wishes(), PREPARE)
    with pytest.raises(UserError, match="1 of 1"):
        push_pending(YES)
    assert "The card of me/model was written by somebody" in capsys.readouterr().err
    push("model", "me/model", Wishes(), Manner(prepare=True, overwrite_card=True))
    push_pending(YES)
    assert hub.files("me/model") == contents(package(folder))


def test_a_dry_run_keeps_nothing_and_a_base_is_asked_for_later(hub: Hub, folder: Path, capsys) -> None:
    push("model", "me/model", Wishes(), Manner(prepare=True, dry_run=True))
    assert "A dry run: nothing was kept." in capsys.readouterr().err
    assert not pending_folder().exists()
    adapter(Path("adapter"), "org/other")
    push("adapter", "me/adapter", Wishes(), PREPARE)
    with pytest.raises(UserError, match="1 of 1"):
        push_pending(YES)
    assert "The base model org/other is not on the Hub" in capsys.readouterr().err
