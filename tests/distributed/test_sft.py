"""The SFT stage on two processes: equal to one, killed and resumed, stopped in order."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.distributed.runs import MODES, Mode, SmallRun
from tests.machine import needs_deepspeed

pytestmark = pytest.mark.slow

ZERO3 = replace(MODES["zero3"], stage="sft")
DDP = replace(MODES["ddp"], stage="sft")
EXACT = {"weights", "metrics", "report"}


@pytest.mark.parametrize(
    "mode",
    [DDP, pytest.param(ZERO3, marks=needs_deepspeed)],
    ids=["ddp", "zero3"],
)
def test_two_processes_train_as_one(mode: Mode, undisturbed) -> None:
    """The loss is a mean over the tokens of a step, whichever process has them."""
    two = undisturbed(mode).outcome()["metrics"]
    one = undisturbed(replace(mode, world=1, config="single")).outcome()["metrics"]
    assert len(two) == len(one)
    for here, there in zip(two, one, strict=True):
        here.pop("tree/sharing", None), there.pop("tree/sharing", None)
        assert here == pytest.approx(there, abs=1e-4), here["step"]
    assert one[-1]["loss"] < one[0]["loss"] - 0.1


def test_killed_and_resumed_is_never_killed(undisturbed, tiny_models, tmp_path: Path) -> None:
    run = SmallRun(tmp_path, tiny_models(DDP.architecture), "sft")
    done = run.start(DDP, fault={"kind": "kill", "at": "step", "number": 5, "ranks": [1]})
    assert done.returncode != 0
    assert run.checkpoints() == [3]
    done = run.start(DDP)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Going on from runs/small-sft/checkpoints/step-3" in " ".join(done.stderr.split())
    assert run.outcome() == undisturbed(DDP).outcome()
    assert run.outcome().keys() == EXACT


def test_stopped_in_order_and_resumed_is_never_stopped(undisturbed, tiny_models, tmp_path: Path) -> None:
    run = SmallRun(tmp_path, tiny_models(DDP.architecture), "sft")
    fault = {"kind": "usr1", "at": "step", "number": 6, "ranks": [1]}
    done = run.start(DDP, fault=fault, LORA_DPO_EXIT_CODE_FILE=str(tmp_path / "code"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "code").read_text() == "85\nSIGUSR1"
    stopped = json.loads((run.path / "stopped.json").read_text())
    assert (stopped["reason"], stopped["step"]) == ("SIGUSR1", 7)
    assert not (run.path / "report.json").exists()
    done = run.start(DDP)
    assert done.returncode == 0, done.stderr[-3000:]
    assert run.outcome() == undisturbed(DDP).outcome()
