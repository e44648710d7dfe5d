"""`lora-dpo generate` as a user starts it: as a process, which is also killed."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from tests.adapters import record, save_adapter
from tests.process import lora_dpo, struck

COUNT = 40
ONE_THREAD = {"OMP_NUM_THREADS": "1"}  # more are slower on layers this small


@pytest.fixture
def work(tiny_models, tmp_path: Path) -> Path:
    """A folder with an adapter and prompts."""
    base = tiny_models("llama")
    record(base, save_adapter(base, tmp_path / "adapter", std=0.5))
    rows = [{"prompt": f"Why is {'the sky ' * (number % 5)}number {number}?"} for number in range(COUNT)]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def words(output: str, *more: str) -> list[str]:
    return ["generate", "adapter", "--input", "in.jsonl", "--output", output, *more]


@pytest.mark.slow
def test_killed_half_way_it_goes_on_to_the_same_file(work: Path) -> None:
    options = ("--temperature", "1.5", "--seed", "7", "--batch-size", "2", "--max-new-tokens", "40")
    whole = lora_dpo(*words("whole.jsonl", *options), cwd=work, **ONE_THREAD)
    assert whole.returncode == 0, whole.stderr
    expected = (work / "whole.jsonl").read_bytes()
    assert expected.count(b"\n") == COUNT
    cut = work / "cut.jsonl"
    for least in (1, 16):
        command = words("cut.jsonl", *options)
        killed = struck(signal.SIGKILL, "cut.jsonl", *command, lines=least, cwd=work, **ONE_THREAD)
        assert killed.returncode == -signal.SIGKILL
        assert expected.startswith(cut.read_bytes())
        assert cut.read_bytes().count(b"\n") < COUNT
    with cut.open("ab") as file:
        file.write(b'{"index": ')
    again = lora_dpo(*words("cut.jsonl", *options), cwd=work, **ONE_THREAD)
    assert again.returncode == 0, again.stderr
    assert f" of {COUNT} answers already." in again.stderr
    assert cut.read_bytes() == expected


@pytest.mark.slow
def test_refusals_leave_everything_as_it_was(work: Path) -> None:
    (work / "thesis.jsonl").write_text("mine")
    before = sorted(work.rglob("*"))
    for arguments, message in (
        (words("thesis.jsonl"), "Error: thesis.jsonl is there already, and nothing in it was touched."),
        (["generate", "adapter", "--input", "inn.jsonl", "-o", "out.jsonl"], "Did you mean 'in.jsonl'?"),
    ):
        result = lora_dpo(*arguments, cwd=work)
        assert (result.returncode, result.stdout) == (2, "")
        assert message in result.stderr
        assert "Traceback" not in result.stderr
        assert sorted(work.rglob("*")) == before
    assert (work / "thesis.jsonl").read_text() == "mine"
