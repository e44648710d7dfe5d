"""The verbs as processes: killed while they upload, with Xet on, and all the way from a recipe."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.adapters import record, save_adapter
from tests.hub.conftest import TOKEN
from tests.hub.faults import Fault
from tests.hub.folders import contents, model, package
from tests.hub.server import Hub
from tests.process import ROOT, lora_dpo, run_python, wait_until
from tests.small import preferences
from tests.test_recipes import overrides_for

LOAD = """
import sys, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained("me/tuned")
torch.save(model(torch.tensor([[5, 6, 7, 8]])).logits.detach(), "logits.pt")
"""
LOAD_ADAPTER = """
import torch
from peft import AutoPeftModelForCausalLM
model = AutoPeftModelForCausalLM.from_pretrained("me/adapter")
torch.save(model(torch.tensor([[5, 6, 7, 8]])).logits.detach(), "logits.pt")
"""


@pytest.fixture
def environment(client_environment: dict[str, str], hub: Hub) -> dict[str, str]:
    return client_environment


@pytest.mark.slow
def test_killed_while_it_uploads_it_leaves_nothing_and_goes_on(
    hub: Hub, tmp_path: Path, environment: dict[str, str]
) -> None:
    folder = model(tmp_path / "model", shards=4)
    hub.faults = [Fault("upload", "hang", skip=2, times=-1)]
    command = [sys.executable, "-m", "lora_dpo", "push", "model", "me/model", "--yes", "--tag", "v1"]
    env = {**os.environ, **environment, "PYTHONPATH": str(ROOT)}
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=tmp_path, env=env, stdout=log, stderr=log)

        def half_way() -> bool:
            assert process.poll() is None, (tmp_path / "log").read_text()
            return len(hub.uploaded) >= 2 and hub.requests.count("upload") >= 3

        wait_until(half_way)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert hub.files("me/model") == {}
    hub.faults = []
    result = lora_dpo("push", "model", "me/model", "--yes", "--tag", "v1", cwd=tmp_path, **environment)
    assert result.returncode == 0, result.stderr
    assert hub.files("me/model") == contents(package(folder))
    assert len(hub.uploaded) == len(set(hub.uploaded)) == 4
    assert TOKEN not in result.stdout + result.stderr + (tmp_path / "log").read_text()


@pytest.mark.slow
def test_with_xet_on_a_hub_that_has_none_publishes_nothing_and_says_what_to_do(
    hub: Hub, tmp_path: Path, environment: dict[str, str]
) -> None:
    pytest.importorskip("hf_xet")
    model(tmp_path / "model")
    own = {**environment, "HF_HUB_DISABLE_XET": "0"}
    result = lora_dpo("push", "model", "me/model", "--yes", cwd=tmp_path, **own)
    assert result.returncode == 2, result.stderr
    assert "HF_HUB_DISABLE_XET=1" in result.stderr
    assert "Traceback" not in result.stderr
    assert TOKEN not in result.stdout + result.stderr
    assert hub.files("me/model") == {}


@pytest.mark.slow
def test_with_debug_on_the_token_is_not_seen_either(hub: Hub, tmp_path: Path, environment: dict[str, str]) -> None:
    model(tmp_path / "model")
    hub.faults = [Fault("commit", status=403, message=f"no {TOKEN}"), Fault("upload", status=500)]
    own = {**environment, "HF_DEBUG": "1"}
    result = lora_dpo("--debug", "push", "model", "me/model", "--yes", cwd=tmp_path, **own)
    assert result.returncode == 2, result.stderr
    assert "The token may not do this." in result.stderr
    assert TOKEN not in result.stdout + result.stderr
    left = [file for file in tmp_path.rglob("*") if file.is_file() and TOKEN.encode() in file.read_bytes()]
    assert left == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "Say what to publish"),
        (("model", "--pending"), "Say what to publish"),
        (("model", "me/x", "--adapter", "--merged"), "--adapter and --merged do not go together"),
        (("--pending", "--tag", "v1"), "--tag does not go with --pending"),
        (("--pending", "--public"), "--private or --public does not go with --pending"),
        (("--pending", "--revision", "dev"), "--revision does not go with --pending"),
        (("--pending", "--verify-load"), "--verify-load does not go with --pending"),
        (("model", "me/x", "--prepare", "--verify-load"), "--verify-load does not go with --prepare"),
    ],
)
def test_words_that_do_not_go_together(words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert ends(("push", *words)) == 2
    assert said in capsys.readouterr().err


def ends(words: tuple[str, ...]) -> int:
    """Runs the command in this process, and returns how it ends."""
    from lora_dpo.cli import main

    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(sys, "argv", ["lora-dpo", *words])
        main()
    return int(ended.value.code or 0)


def test_where_a_card_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(model(tmp_path / "model"))
    for place in (str(tmp_path), "/proc/x/y"):
        assert ends(("card", folder, "me/x", "-o", place)) == 2
        assert f"The card cannot be written to {place}" in capsys.readouterr().err
    assert ends(("card", folder, "me/x", "--adapter", "--merged")) == 2
    assert "do not go together" in capsys.readouterr().err


@pytest.mark.slow
def test_an_adapter_is_loaded_from_the_hub_by_peft(
    hub: Hub, tiny_models, tmp_path: Path, environment: dict[str, str]
) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_models("llama"), base)
    record(base, save_adapter(base, tmp_path / "adapter"))
    own = {**environment, "LORA_DPO_CACHE": str(tmp_path / "cache")}
    for words in (("base", "me/base"), ("adapter", "me/adapter", "--base-model", "me/base", "--verify-load")):
        result = lora_dpo("push", *words, "--yes", cwd=tmp_path, **own)
        assert result.returncode == 0, result.stderr
    assert "There is no tokenizer in it, so the card takes that of me/base." in result.stderr
    assert "all files and its logits are those of adapter" in result.stderr
    loaded = run_python("-c", LOAD_ADAPTER, cwd=tmp_path, **environment)
    assert loaded.returncode == 0, loaded.stderr
    from peft import PeftModel

    tuned = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "adapter")
    with torch.no_grad():
        assert torch.equal(torch.load(tmp_path / "logits.pt"), tuned(torch.tensor([[5, 6, 7, 8]])).logits)


@pytest.mark.slow
def test_from_a_recipe_to_a_published_model(hub: Hub, tiny_models, tmp_path: Path, environment: dict[str, str]) -> None:
    rows = [
        {"prompt": pair.prompt[-1]["content"], "chosen": pair.chosen, "rejected": pair.rejected}
        for pair in preferences(16)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = [*overrides_for("quickstart", tiny_models("llama"), tmp_path), "run.folder=runs", "data.path=pairs.jsonl"]
    words = ["run", "quickstart", *own, "hub.repo=me/tuned", "hub.tag=v1", "hub.base_model=me/base"]
    result = lora_dpo(*words, cwd=tmp_path, **environment)
    assert result.returncode == 0, result.stderr
    assert "Stage 3 of 3, push:" in result.stderr
    published = hub.files("me/tuned")
    merged = tmp_path / "runs" / "quickstart" / "merged"
    assert published["model.safetensors"] == (merged / "model.safetensors").read_bytes()
    assert set(hub.repository("me/tuned").state["tags"]) == {"v1"}
    assert b"## What merging changed" in published["README.md"]
    loaded = run_python("-c", LOAD, cwd=tmp_path, **environment)
    assert loaded.returncode == 0, loaded.stderr
    expected = AutoModelForCausalLM.from_pretrained(merged)
    with torch.no_grad():
        assert torch.equal(torch.load(tmp_path / "logits.pt"), expected(torch.tensor([[5, 6, 7, 8]])).logits)
    hub.requests.clear()
    again = lora_dpo(*words, cwd=tmp_path, **environment)
    assert again.returncode == 0, again.stderr
    assert "there is nothing to do" in again.stderr
    assert not {"preupload", "commit", "tag"} & set(hub.requests)
    assert TOKEN not in result.stdout + result.stderr + again.stdout + again.stderr
