"""`lora-dpo cancel`: a training is asked to save, the rest leaves the queue."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest

from lora_dpo.cluster import cancel as module
from lora_dpo.cluster.cancel import cancel
from lora_dpo.cluster.status import status_of
from lora_dpo.errors import UserError
from lora_dpo.recipe.loading import to_yaml
from lora_dpo.recipe.run_folder import RunFolder
from tests.cluster.conftest import FakeSlurm, record
from tests.small import small_recipe


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake_slurm: FakeSlurm) -> RunFolder:
    """A run that trains in job 101, with a merge and a push that wait for it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "_LOOKS_EACH_SECONDS", 0.0)
    found = RunFolder(Path("runs/small"))
    for job, stage in (("101", "dpo"), ("102", "merge"), ("103", "push")):
        record(found.path, {"event": "submitted", "job": job, "stage": stage})
        fake_slurm.knows(job, "running" if job == "101" else "dependency")
    (found.slurm / "recipe.yaml").write_text(to_yaml(small_recipe("m", Path("runs"))))
    return found


def leaves_when_asked(run: RunFolder, fake_slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Lets job 101 end as one that found the stop file; returns what that said."""
    said = []

    def sleep(seconds: float) -> None:
        if run.stop_file.exists():
            said.append(run.stop_file.read_text())
            run.stop_file.unlink()
            fake_slurm.knows("101", "completed", JobState="FAILED")

    monkeypatch.setattr(module.time, "sleep", sleep)
    return said


def test_a_training_is_asked_to_save_after_what_waits_has_left_the_queue(
    run: RunFolder, fake_slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = leaves_when_asked(run, fake_slurm, monkeypatch)
    assert cancel(status_of(run), None, now=False) == ["101", "102", "103"]
    assert said == ["lora-dpo cancel"]
    assert fake_slurm.calls("scancel") == [["102", "103"]]


def at_each_look(run: RunFolder, monkeypatch: pytest.MonkeyPatch, *happens: Callable[[], object]) -> list[bool]:
    """Lets something happen after each look at the job; returns whether the stop file was there then."""
    seen: list[bool] = []

    def sleep(seconds: float) -> None:
        if seconds:  # somebody else's
            return
        seen.append(run.stop_file.exists())
        happens[len(seen) - 1]()

    monkeypatch.setattr(module.time, "sleep", sleep)
    return seen


def test_a_job_that_was_just_beginning_is_asked_again(
    run: RunFolder, fake_slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begins() -> None:
        run.stop_file.unlink()
        record(run.path, {"event": "started", "job": "101", "stage": "dpo"})

    seen = at_each_look(run, monkeypatch, begins, lambda: fake_slurm.knows("101", "completed", JobState="FAILED"))
    cancel(status_of(run), "101", now=False)
    assert seen == [True, True]


def test_a_job_that_begins_while_others_are_asked_is_asked_again(
    run: RunFolder, fake_slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begins(_: str) -> None:
        if run.stop_file.exists():
            run.stop_file.unlink()
            record(run.path, {"event": "started", "job": "101", "stage": "dpo"})

    monkeypatch.setattr(module, "note", begins)
    seen = at_each_look(run, monkeypatch, lambda: None, lambda: fake_slurm.knows("101", "completed", JobState="FAILED"))
    cancel(status_of(run), "101", now=False)
    assert seen == [False, True]


def test_a_job_that_comes_back_has_not_ended(
    run: RunFolder, fake_slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ends(cause: str, *, requeued: bool) -> None:
        record(run.path, {"event": "ended", "job": "101", "cause": cause, "requeued": requeued})
        fake_slurm.knows("101", "completed", EndTime=f"{datetime.now():%Y-%m-%dT%H:%M:%S}")

    seen = at_each_look(
        run,
        monkeypatch,
        lambda: ends("preemption", requeued=True),  # before it could see the stop file
        lambda: fake_slurm.knows("101", "running"),
        lambda: ends("asked", requeued=False),
    )
    cancel(status_of(run), "101", now=False)
    assert seen == [True, True, True]


def test_now_saves_nothing(run: RunFolder, fake_slurm: FakeSlurm) -> None:
    assert cancel(status_of(run), None, now=True) == ["101", "102", "103"]
    assert fake_slurm.calls("scancel") == [["101", "102", "103"]]
    assert not run.stop_file.exists()


def test_of_a_job_those_that_wait_for_it_end_too(run: RunFolder, fake_slurm: FakeSlurm) -> None:
    assert cancel(status_of(run), "102", now=False) == ["102", "103"]
    assert fake_slurm.calls("scancel") == [["102", "103"]]


def test_a_training_that_waits_has_nothing_to_save(run: RunFolder, fake_slurm: FakeSlurm) -> None:
    fake_slurm.knows("101", "requeued")
    cancel(status_of(run), None, now=False)
    assert fake_slurm.calls("scancel") == [["101", "102", "103"]]
    assert not run.stop_file.exists()


def test_an_sft_stage_is_asked_in_its_own_run(
    run: RunFolder, fake_slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run.slurm / "recipe.yaml").write_text(to_yaml(small_recipe("m", Path("runs"), sft={"path": "a.csv"})))
    (run.slurm / "submission.json").write_text(json.dumps({"jobs": [{"job": "201"}]}))
    record(run.path, {"event": "submitted", "job": "201", "stage": "sft"})
    fake_slurm.knows("201", "running")
    own = RunFolder(Path("runs/small-sft"))
    own.path.mkdir()
    monkeypatch.setattr(module.time, "sleep", lambda seconds: fake_slurm.knows("201", "completed"))
    cancel(status_of(run), None, now=False)
    assert own.stop_file.read_text() == "lora-dpo cancel"


def test_where_nothing_runs_there_is_nothing_to_cancel(run: RunFolder, fake_slurm: FakeSlurm) -> None:
    with pytest.raises(UserError, match="has no job that waits or runs, of number 999"):
        cancel(status_of(run), "999", now=False)
    for job in ("101", "102", "103"):
        fake_slurm.knows(job, "completed")
    with pytest.raises(UserError, match="runs/small has no job that waits or runs"):
        cancel(status_of(run), None, now=False)
