"""`lora-dpo merge` and `lora-dpo show` as a user starts them: as processes, which are also killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.adapters import merged_by_peft, record, save_adapter
from tests.process import lora_dpo, run_python, struck
from tests.tiny import tiny_tokenizer

MERGE = ("merge", "adapter", "-o", "out")
LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
sys.argv = ["lora-dpo", "merge", "adapter", "-o", "out"]
from lora_dpo.cli import main
main()
"""


@pytest.fixture
def work(tiny_models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model in several files, and an adapter on it that says so."""
    base = tmp_path / "base"
    AutoModelForCausalLM.from_pretrained(tiny_models("llama")).save_pretrained(base, max_shard_size="60KB")
    tiny_tokenizer("llama").save_pretrained(base)
    monkeypatch.chdir(tmp_path)
    record(Path("base"), save_adapter(Path("base"), Path("adapter")))
    return tmp_path


def models(folder: Path) -> list[str]:
    """Returns all that looks like a model: wherever there is a config.json."""
    return sorted(file.parent.name for file in folder.rglob("config.json"))


def refused(work: Path, *words: str, code: str | None = None) -> str:
    """Runs a merge that must fail; returns what it said, once nothing is seen to have been left behind."""
    before = sorted(work.rglob("*"))
    result = run_python("-c", code, cwd=work) if code else lora_dpo("merge", *words, cwd=work)
    assert result.returncode == 2, result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert result.stderr.count("Error: ") == 1
    assert sorted(work.rglob("*")) == before
    return " ".join(result.stderr.rpartition("Error: ")[2].split())


@pytest.mark.slow
def test_merges_and_says_what_it_found(work: Path) -> None:
    result = lora_dpo("merge", "adapter", "-o", "out", "--gguf", cwd=work)
    assert result.returncode == 0, result.stderr
    assert "same most likely token" in result.stdout
    assert "3 of 3 greedy answers begin with the same words." in result.stdout
    command = "python llama.cpp/convert_hf_to_gguf.py out --outfile out-f32.gguf --outtype f32"
    assert command in result.stderr
    model = AutoModelForCausalLM.from_pretrained(work / "out")
    expected = merged_by_peft(work / "base", work / "adapter")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
    shown = lora_dpo("show", "out", cwd=work)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith("out  merge of 1 adapter onto the full base, float32  ")
    assert "merged in adapter  dpo, lora r 4" in shown.stdout
    known = json.loads(lora_dpo("show", "out", "--json", cwd=work).stdout)
    assert known == json.loads((work / "out" / "provenance.json").read_text())


@pytest.mark.slow
def test_as_json_there_is_the_report_and_nothing_else(work: Path) -> None:
    result = lora_dpo("merge", "adapter", "-o", "deep/er/out", "--dtype", "bf16", "--json", cwd=work)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report == json.loads((work / "deep" / "er" / "out" / "merge_report.json").read_text())
    assert report["dtype"] == "bfloat16"
    assert AutoModelForCausalLM.from_pretrained(work / "deep" / "er" / "out").dtype == torch.bfloat16


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["model-00001-*", "tokenizer.json"], ids=["while writing", "while comparing"])
def test_killed_half_way_it_leaves_no_model_and_a_second_run_completes(work: Path, moment: str) -> None:
    killed = struck(signal.SIGKILL, f".out.partial/{moment}", *MERGE, cwd=work)
    assert killed.returncode == -signal.SIGKILL
    assert not (work / "out").exists()
    assert (work / ".out.partial").is_dir()
    assert models(work) == ["base"]
    result = lora_dpo("merge", "adapter", "-o", "out", cwd=work)
    assert result.returncode == 0, result.stderr
    assert models(work) == ["base", "out"]
    assert sorted(file.name for file in work.iterdir()) == ["adapter", "base", "out"]


@pytest.mark.slow
def test_interrupted_it_leaves_nothing(work: Path) -> None:
    assert struck(signal.SIGINT, ".out.partial/model-00001-*", *MERGE, cwd=work).returncode == 130
    assert sorted(file.name for file in work.iterdir()) == ["adapter", "base"]


@pytest.mark.slow
def test_a_file_that_cannot_be_written_to_its_end(work: Path) -> None:
    message = refused(work, code=LIMITED)
    assert message.startswith("A file could not be written to its end: File too large. Nothing was left behind.")
    assert "-o DIR" in message


@pytest.mark.slow
def test_a_full_disk(work: Path) -> None:
    disk = work / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        message = refused(work, "adapter", "-o", "disk/out")
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    assert "0.00 GB are needed at disk" in message
    assert "Free some space, or write elsewhere with -o DIR." in message


@pytest.mark.slow
def test_a_folder_that_is_not_empty(work: Path) -> None:
    (work / "out").mkdir()
    (work / "out" / "thesis.tex").write_text("x")
    assert refused(work, "adapter", "-o", "out").startswith("out is there already, and nothing in it was touched.")


@pytest.mark.slow
def test_an_adapter_that_is_not_there_or_lost_its_base(work: Path) -> None:
    assert "Did you mean 'adapter'?" in refused(work, "./adaptr", "-o", "out")
    (work / "base").rename(work / "moved")
    assert "model base is not in the local cache" in refused(work, "adapter", "-o", "out")
    result = lora_dpo("merge", "adapter", "-o", "out", "--base", "moved", cwd=work)
    assert result.returncode == 0, result.stderr
