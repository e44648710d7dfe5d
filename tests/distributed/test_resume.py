"""A run that was killed, stopped or started on another number of processes ends as one that never was."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.runs import MODES as ALL_MODES
from tests.distributed.runs import Mode, SmallRun
from tests.machine import needs_deepspeed

pytestmark = pytest.mark.slow

MODES = ALL_MODES | {
    "single, dropout": Mode("llama", words=("adapter.dropout=0.1", "train.logging_steps=2")),
    "ddp of four": Mode("llama", 4, "cpu_ddp", ("train.epochs=2",)),
    "fsdp2": Mode("llama", 2, "fsdp2"),
    "whole model, zero3": Mode("llama", 2, "cpu_zero3", ("adapter.method=full", "train.learning_rate=1e-3")),
}
SHOWN_BY_OTHERS = {"single", "ddp"}
"""By one process with dropout, and by four processes; each mode here takes three starts."""
each_mode = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=needs_deepspeed if "zero" in name else ())
        for name in MODES
        if name not in SHOWN_BY_OTHERS
    ],
)


@pytest.fixture(scope="module")
def killed(tiny_models, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Path], SmallRun]:
    """Returns a function that copies a run of which one process was killed in its sixth step."""
    runs: dict[str, SmallRun] = {}

    def copy_of(name: str, folder: Path) -> SmallRun:
        mode = MODES[name]
        if name not in runs:
            runs[name] = SmallRun(tmp_path_factory.mktemp("killed"), tiny_models(mode.architecture))
            fault = {"kind": "kill", "at": "step", "number": 5, "ranks": [mode.world - 1]}
            done = runs[name].start(mode, fault=fault)
            assert done.returncode != 0
            assert runs[name].checkpoints() == [3]
            last = (runs[name].path / "metrics.jsonl").read_text().splitlines()[-1]
            assert json.loads(last)["step"] > 3  # what the resumed run has to take back
        copy = SmallRun(folder, tiny_models(mode.architecture))
        shutil.copytree(runs[name].path, copy.path)
        return copy

    return copy_of


def go_on(run: SmallRun, mode: Mode) -> str:
    done = run.start(mode)
    assert done.returncode == 0, done.stderr[-3000:]
    return " ".join(done.stderr.split())


@each_mode
def test_killed_and_resumed_is_never_killed(name: str, undisturbed, killed, tmp_path: Path) -> None:
    run = killed(name, tmp_path)
    said = go_on(run, MODES[name])
    assert "Going on from runs/small/checkpoints/step-3, after step 3 of" in said
    assert "built anew" not in said
    assert run.outcome() == undisturbed(MODES[name]).outcome()
    assert len(run.checkpoints()) == 2
    resumed = json.loads((run.path / "provenance.json").read_text())["resumed"]
    assert [(entry["step"], entry["world_size"]) for entry in resumed] == [(3, MODES[name].world)]


@pytest.mark.parametrize(
    ("name", "signal", "number"), [("single", "interrupt", 5), ("ddp", "usr1", 6), ("single, dropout", "term", 14)]
)
def test_stopped_in_order_and_resumed_is_never_stopped(
    name: str, signal: str, number: int, undisturbed, tiny_models, tmp_path: Path
) -> None:
    """The signal comes in the step after `number`: before an evaluation, after a save, or in the last step."""
    mode = MODES[name]
    run = SmallRun(tmp_path, tiny_models(mode.architecture))
    fault = {"kind": signal, "at": "step", "number": number, "ranks": [mode.world - 1]}
    done = run.start(mode, fault=fault, LORA_DPO_EXIT_CODE_FILE=str(tmp_path / "code"))
    assert done.returncode == 0, done.stderr[-3000:]
    reason = {"interrupt": "Ctrl-C", "usr1": "SIGUSR1", "term": "SIGTERM"}[signal]
    assert (tmp_path / "code").read_text() == f"85\n{reason}"
    stopped = json.loads((run.path / "stopped.json").read_text())
    assert (stopped["reason"], stopped["step"], stopped["max_steps"]) == (reason, number + 1, 15)
    assert f"Stopped by {reason}, after step {number + 1} of 15." in done.stderr
    assert run.checkpoints()[-1] == number + 1
    assert not (run.path / "report.json").exists()
    metrics = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert not [entry for entry in metrics if entry["phase"] == "eval" and entry["step"] == number + 1]
    said = go_on(run, MODES[name])
    assert f"Going on from runs/small/checkpoints/step-{number + 1}" in said
    assert run.outcome() == undisturbed(MODES[name]).outcome()
    assert not (run.path / "stopped.json").exists()


def assert_close(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Another number of processes adds in another order, and its micro-batches share other prompts."""
    assert len(found["metrics"]) == len(expected["metrics"])
    for here, there in zip(found["metrics"], expected["metrics"], strict=True):
        here.pop("tree/sharing", None), there.pop("tree/sharing", None)
        assert here == pytest.approx(there, abs=1e-4), here["step"]


@pytest.mark.parametrize(("name", "world"), [("ddp", 1), ("single", 2)])
def test_another_number_of_processes_goes_on(name: str, world: int, undisturbed, killed, tmp_path: Path) -> None:
    run = killed(name, tmp_path)
    config = "single" if world == 1 else "cpu_ddp"
    said = go_on(run, replace(MODES[name], world=world, config=config))
    assert "built anew" not in said
    assert_close(run.outcome(), undisturbed(MODES[name]).outcome())


@needs_deepspeed
@pytest.mark.parametrize(
    ("name", "world", "config", "rebuilt"),
    [
        ("zero2", 1, "single", "written by 2 processes (zero2); this is 1 process (replicated)"),
        ("single", 2, "cpu_zero3", "written by 1 process (replicated); this is 2 processes (zero3)"),
        ("whole model, zero3", 1, "single", "written by 2 processes (zero3); this is 1 process (replicated)"),
    ],
)
def test_another_strategy_keeps_weights_schedule_and_data(
    name: str, world: int, config: str, rebuilt: str, undisturbed, killed, tmp_path: Path
) -> None:
    run = killed(name, tmp_path)
    said = go_on(run, replace(MODES[name], world=world, config=config))
    assert rebuilt in said
    assert "the optimizer's moments are built anew" in said
    plain = undisturbed(MODES[name]).outcome()["metrics"]
    found = run.outcome()["metrics"]
    of_loss = ["step", "phase", "learning_rate", "num_tokens"]
    assert [[e.get(key) for key in of_loss] for e in found] == [[e.get(key) for key in of_loss] for e in plain]
    first_new = next(place for place, entry in enumerate(found) if entry["step"] == 4)
    for key in ("loss", "rewards/margins", "logps/chosen"):  # the weights are those of step 3
        assert found[first_new][key] == pytest.approx(plain[first_new][key], abs=1e-4)
    assert found[-1]["loss"] == pytest.approx(plain[-1]["loss"], abs=0.05)
