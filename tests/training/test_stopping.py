from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import psutil
import pytest
import torch

from lora_dpo.training.stopping import REASONS, Deadline, Stopped, StopRequests
from tests.process import run_python


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "stop"


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)
    time.sleep(0.01)  # Python calls the handler between two of its own instructions


class InTheMiddle:
    """What torch asks for its length, and takes for a number when that is interrupted."""

    def __init__(self, number: signal.Signals) -> None:
        self._number = number

    def __len__(self) -> int:
        send(self._number)
        return 0

    def __getitem__(self, place: int) -> float:
        raise IndexError


@pytest.mark.parametrize(
    ("number", "reason"), [(signal.SIGTERM, "SIGTERM"), (signal.SIGUSR1, "SIGUSR1"), (signal.SIGINT, "Ctrl-C")]
)
def test_a_signal_inside_of_the_loop_waits_until_it_is_asked_for(
    file: Path, number: signal.Signals, reason: str
) -> None:
    before = signal.getsignal(number)
    with StopRequests(file) as stop, stop.in_the_loop():
        assert stop.due() == 0
        send(number)
        send(signal.SIGTERM)  # the first one counts
        assert stop.reason(stop.due()) == reason
    assert signal.getsignal(number) is before


def test_a_signal_outside_of_the_loop_ends_at_once(file: Path) -> None:
    with pytest.raises(Stopped, match="Stopped by SIGTERM, before the first step."), StopRequests(file):
        send(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), StopRequests(file):
        send(signal.SIGINT)


def test_a_signal_that_torch_turns_into_an_error_of_its_own_is_still_heard(file: Path) -> None:
    with pytest.raises(Stopped, match="Stopped by SIGUSR1"), StopRequests(file) as stop:
        with pytest.raises(ValueError, match="could not determine the shape") as disguised:
            torch.asarray(InTheMiddle(signal.SIGUSR1))
        assert isinstance(stop.cause_of(disguised.value), Stopped)
        raise disguised.value
    with pytest.raises(KeyboardInterrupt), StopRequests(file):
        torch.asarray(InTheMiddle(signal.SIGINT))
    with pytest.raises(ValueError, match="another"), StopRequests(file):
        raise ValueError("another")


KILLED_WITH_THE_OTHERS = """
import os, signal, time
from pathlib import Path
from lora_dpo.training.stopping import StopRequests
with StopRequests(Path("stop")):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
"""


def test_a_launcher_that_ends_the_others_of_a_dead_process_asks_for_no_stop(tmp_path: Path) -> None:
    done = run_python("-c", KILLED_WITH_THE_OTHERS, cwd=tmp_path, WORLD_SIZE="2")
    assert done.returncode == -signal.SIGTERM
    alone = run_python("-c", KILLED_WITH_THE_OTHERS, cwd=tmp_path)
    assert "Stopped: Stopped by SIGTERM, before the first step." in alone.stderr


def test_one_that_came_too_late_for_the_loop_is_not_forgotten(file: Path) -> None:
    with StopRequests(file) as stop:
        with stop.in_the_loop():
            send(signal.SIGUSR1)
        assert stop.reason(stop.due()) == "SIGUSR1"


def test_nothing_disturbs_a_process_that_leaves(file: Path) -> None:
    with pytest.raises(Stopped, match="Stopped by SIGUSR1, after step 3 of 9."), StopRequests(file) as stop:
        with stop.in_the_loop():
            send(signal.SIGUSR1)
            stop.steps_made(3, 9)
        leaving = stop.stopped(stop.asked())
        send(signal.SIGTERM)
        send(signal.SIGINT)
        raise leaving


def test_the_file_ends_at_once_what_is_outside_of_the_loop(file: Path) -> None:
    with pytest.raises(Stopped, match="Stopped by a maintenance, before the first step."), StopRequests(file):
        file.write_text("a maintenance\n", encoding="utf-8")
        time.sleep(60)  # as a model that is loaded
    assert not file.exists()


@pytest.mark.parametrize(("text", "reason"), [("", "a stop file"), ("a maintenance of the cluster\n", "a maintenance")])
def test_the_stop_file_asks_and_may_say_why(file: Path, text: str, reason: str) -> None:
    with StopRequests(file) as stop, stop.in_the_loop():
        assert stop.due() == 0
        file.write_text(text, encoding="utf-8")
        assert stop.reason(stop.due()).startswith(reason)


def test_only_the_first_process_looks_for_the_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    with StopRequests(file) as stop, stop.in_the_loop():
        file.touch()
        assert stop.due() == 0


@pytest.mark.parametrize("started_by_us", [False, True])
def test_a_file_that_was_meant_for_an_earlier_process_is_taken_away(
    file: Path, started_by_us: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under `lora-dpo dpo` it cannot be one: that command has taken it away before it started this process."""
    if started_by_us:
        monkeypatch.setenv("LORA_DPO_EXIT_CODE_FILE", str(file.with_name("code")))
    file.touch()
    before = psutil.Process().create_time() - 5
    os.utime(file, (before, before))
    with StopRequests(file) as stop, stop.in_the_loop():
        assert stop.due() == (REASONS.index("a stop file") if started_by_us else 0)
    assert file.exists() == started_by_us


def test_no_deadline_is_never_near(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_END_TIME", raising=False)
    assert Deadline.of(None).end is None
    assert not Deadline.of(None).is_near()


def test_the_earlier_of_two_deadlines_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    started = psutil.Process().create_time()
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(started + 3600)))
    assert Deadline.of(2.0).end == pytest.approx(started + 3600, abs=1)
    assert REASONS[Deadline.of(2.0).reason] == "the job's time limit"
    assert Deadline.of(0.5).end == pytest.approx(started + 1800, abs=1)
    assert REASONS[Deadline.of(0.5).reason] == "train.max_hours"


def test_the_time_to_leave_follows_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """A minute is set aside for a save until one was measured; then one and a half steps and two saves."""
    monkeypatch.setattr("lora_dpo.training.stopping.time.time", lambda: 1000.0)
    deadline = Deadline(end=1119.0)
    assert deadline.is_near()
    deadline.saved(5.0)
    assert not deadline.is_near()
    deadline.saved(4.0)
    deadline.step_seconds = 10.0
    deadline.end = 1026.0
    assert not deadline.is_near()
    deadline.end = 1024.0
    assert deadline.is_near()


def test_the_longest_step_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    deadline = Deadline()
    for now in (100.0, 103.0, 110.0, 111.0):
        monkeypatch.setattr(time, "monotonic", lambda now=now: now)
        deadline.step_ended()
    assert deadline.step_seconds == 7.0


def test_a_stop_says_after_which_step() -> None:
    stopped = Stopped("SIGTERM", 7, 20)
    assert str(stopped) == "Stopped by SIGTERM, after step 7 of 20."
    content = stopped.as_json()
    assert {key: content[key] for key in ("schema_version", "reason", "step", "max_steps")} == {
        "schema_version": 1,
        "reason": "SIGTERM",
        "step": 7,
        "max_steps": 20,
    }
    assert not isinstance(stopped, Exception)
