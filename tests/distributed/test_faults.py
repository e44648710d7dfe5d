"""Kinds of faults, once each, with what the user is told; `benchmarks/faults.py` has more kinds and draws many."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.distributed.runs import MODES, SAVE_STEPS, SmallRun
from tests.distributed.soak import FAULTS, Round, run_round
from tests.machine import needs_deepspeed

pytestmark = pytest.mark.slow

COVERED = {"kill -9 of one process", "SIGTERM", "SIGUSR1", "truncated file", "missing file"}
"""By test_resume.py in every mode, or as damaged checkpoints in tests/training/."""
KINDS = [name for name in FAULTS if name not in COVERED]
MODE_OF = {"kill -9 of all": "ddp", "hang": "ddp", "NaN loss": "ddp", "kill -9 in a save": "ddp", "stop file": "zero2"}
LOST_AT_MOST = {"flipped bit": 2 * SAVE_STEPS}
SAYS = {
    "flipped bit": ["Passed over: ", "cannot be used:"],
    "disk full": ["Error: The disk is full", "run.folder=DIR"],
    "hang": ["[rank 0] Error: no micro-batch has ended for 20 seconds", "[rank 1] Error: no micro-batch", "in strike"],
    "NaN loss": ["Error: The loss became no number at step", "data.jsonl, line ", "train.on_nan=skip"],
    "SIGUSR1 in the reference pass": ["Stopped by SIGUSR1, before the first step"],
    "SIGTERM in a save": ["Stopped by SIGTERM, after step"],
    "stop file": ["Stopped by a stop file, after step"],
}


def may_mount() -> bool:
    """Returns whether this user may put a small filesystem somewhere."""
    if shutil.which("mount") is None or os.geteuid() != 0:
        return False
    probe = ["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return shutil.which("unshare") is not None and subprocess.run(probe, capture_output=True).returncode == 0


def marks(name: str) -> list:
    if MODE_OF.get(name) == "zero2":
        return [needs_deepspeed]
    return [pytest.mark.skipif(not may_mount(), reason="no right to mount a filesystem")] if name == "disk full" else []


@pytest.mark.parametrize("name", [pytest.param(name, marks=marks(name)) for name in KINDS])
def test_a_run_that_was_struck_ends_as_one_that_was_not(name: str, undisturbed, tiny_models, tmp_path: Path) -> None:
    mode_name = MODE_OF.get(name, "single")
    mode = MODES[mode_name]
    run = SmallRun(tmp_path, tiny_models(mode.architecture))
    result: Round = run_round(name, mode_name, mode, run, undisturbed(mode).outcome(), random.Random(name))
    assert (result.struck, result.survived, result.identical) == (True, True, True), result.said[-3000:]
    assert result.starts == 2
    assert result.steps_lost <= LOST_AT_MOST.get(name, SAVE_STEPS)
    said = " ".join(result.said.split())
    for words in SAYS.get(name, []):
        assert words in said, said[-3000:]


def test_a_micro_batch_whose_loss_is_no_number_can_be_left_out(undisturbed, tiny_models, tmp_path: Path) -> None:
    run = SmallRun(tmp_path, tiny_models("llama"))
    done = run.start(MODES["single"], "train.on_nan=skip", fault={"kind": "nan", "at": "step", "number": 5})
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Step 6 leaves out, since their loss is no number: data.jsonl, line " in " ".join(done.stderr.split())
    losses, plain = (
        {entry["step"]: entry["loss"] for entry in of.outcome()["metrics"] if entry["phase"] == "train"}
        for of in (run, undisturbed(MODES["single"]))
    )
    assert [losses[step] for step in range(1, 6)] == [plain[step] for step in range(1, 6)]
    assert losses[6] == 0.0  # nothing was left of this step
    assert all(loss is not None and 0.0 < loss < 0.8 for step, loss in losses.items() if step != 6)


def test_nothing_goes_on_where_every_micro_batch_is_left_out(tiny_models, tmp_path: Path) -> None:
    run = SmallRun(tmp_path, tiny_models("llama"))
    words = ("train.on_nan=skip", "train.learning_rate=1e30")
    done = run.start(MODES["single"], *words, LORA_DPO_EXIT_CODE_FILE=str(tmp_path / "code"))
    assert (tmp_path / "code").read_text().startswith("2\n"), done.stderr[-3000:]
    assert "Error: No loss of 3 steps in a row is a number, up to step" in " ".join(done.stderr.split())
    assert not (run.path / "adapter").exists()


def test_it_leaves_in_time(tiny_models, tmp_path: Path) -> None:
    """The clock starts with the process, so that loading counts; the rest is what steps and saves take here."""
    run = SmallRun(tmp_path, tiny_models("llama"), train={"epochs": 1000, "max_hours": 20 / 3600})
    done = run.start(MODES["single"], LORA_DPO_EXIT_CODE_FILE=str(tmp_path / "code"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "code").read_text() == "85\ntrain.max_hours"
    stopped = json.loads((run.path / "stopped.json").read_text())
    assert stopped["reason"] == "train.max_hours"
    assert 0 < stopped["step"] < stopped["max_steps"]
    assert run.checkpoints()[-1] == stopped["step"]


def test_the_soak_counts_what_it_did(tmp_path: Path) -> None:
    script = Path(__file__).parent.parent.parent / "benchmarks" / "faults.py"
    words = ["--rounds", "1", "--fault", "SIGTERM", "--mode", "single", "--json", "--output", str(tmp_path / "x.json")]
    done = subprocess.run([sys.executable, str(script), *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    entry = json.loads(done.stdout)
    assert entry == json.loads((tmp_path / "x.json").read_text())
    assert (entry["rounds"], entry["survived"], entry["identical"], entry["steps_lost_max"]) == (1, 1, 1, 0)
    assert entry["by_fault"]["SIGTERM"]["modes"] == {"single": 1}
