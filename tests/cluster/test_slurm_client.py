"""What is read out of Slurm's answers; the texts in slurm_output/ are those of a real Slurm 22.05."""

from __future__ import annotations

import subprocess
from datetime import datetime

import pytest

from lora_dpo.cluster.slurm_client import (
    Job,
    NoSlurmError,
    find_job,
    parse_sacct,
    parse_scontrol,
    show_job,
    without_job_variables,
    words_of,
)
from tests.cluster.conftest import OUTPUT, FakeSlurm


def read(name: str) -> Job:
    (job,) = parse_scontrol((OUTPUT / f"{name}.txt").read_text())
    return job


def test_a_running_job_whose_name_and_folder_have_spaces() -> None:
    assert read("running") == Job(
        "27",
        "RUNNING",
        nodes="node[3-4]",
        restarts=0,
        start=datetime(2026, 11, 22, 10, 52, 46),
        end=datetime(2026, 11, 22, 11, 12, 46),
        time_limit="00:20:00",
        exit_code="0:0",
        partition="batch",
        name="two words",
        log="/home/me/with space/out 27.txt",
        folder="/home/me/with space",
    )
    assert read("running").is_running
    assert not read("running").has_ended


def test_a_job_that_waits_for_another() -> None:
    job = read("dependency")
    assert (job.state, job.reason, job.dependency) == ("PENDING", "Dependency", "afterok:27(unfulfilled)")
    assert (job.start, job.end, job.nodes) == (None, None, "")
    conditions = read("chained").dependency
    assert conditions == "afterany:27(unfulfilled),afterany:28(unfulfilled),singleton(unfulfilled)"


def test_a_requeued_task_of_an_array_has_its_next_start() -> None:
    job = read("requeued")
    assert (job.id, job.state, job.reason, job.restarts) == ("30_1", "PENDING", "BeginTime", 1)
    assert job.start == datetime(2026, 11, 22, 10, 54, 48)
    assert not job.has_ended


def test_jobs_that_have_ended() -> None:
    assert (read("completed").state, read("completed").has_ended) == ("COMPLETED", True)
    cancelled = read("cancelled_dependency")
    assert (cancelled.state, cancelled.reason) == ("CANCELLED", "DependencyNeverSatisfied")
    assert cancelled.has_ended


def test_several_jobs_in_one_answer() -> None:
    text = "".join((OUTPUT / f"{name}.txt").read_text() for name in ("running", "dependency", "completed"))
    assert [job.id for job in parse_scontrol(text)] == ["27", "28", "20"]


def test_accounting() -> None:
    jobs = {job.id: job for job in parse_sacct((OUTPUT / "sacct.txt").read_text())}
    assert (jobs["20"].state, jobs["20"].nodes, jobs["20"].name) == ("COMPLETED", "node[1-2]", "small-dpo")
    assert jobs["20"].end == datetime(2026, 11, 22, 10, 46, 5)
    assert (jobs["17"].state, jobs["17"].exit_code, jobs["17"].nodes) == ("FAILED", "1:0", "")
    assert jobs["27"].state == "CANCELLED"  # `CANCELLED by 0`
    assert jobs["30_1"].state == "REQUEUED"
    assert not jobs["30_1"].has_ended


def test_a_job_that_the_controller_has_forgotten_is_looked_for_in_the_accounts(fake_slurm: FakeSlurm) -> None:
    assert find_job("20") is None  # and there are no accounts
    (fake_slurm.folder / "sacct.txt").write_text((OUTPUT / "sacct.txt").read_text())
    found = find_job("20")
    assert found is not None
    assert (found.state, found.time_limit) == ("COMPLETED", "00:20:00")
    fake_slurm.knows("20", "running")
    assert find_job("20") == read("running")


def test_a_controller_that_is_down_is_no_forgotten_job(fake_slurm: FakeSlurm) -> None:
    (fake_slurm.folder / "down").touch()
    with pytest.raises(NoSlurmError, match="Unable to contact slurm controller"):
        show_job("20")


def test_a_machine_without_slurm(no_slurm: None) -> None:
    with pytest.raises(NoSlurmError, match="This machine has no scontrol, so it is no login node"):
        show_job("20")


def test_variables_of_the_job_that_one_submits_from_do_not_reach_the_new_one() -> None:
    inside = {"SLURM_JOB_ID": "5", "SLURM_NNODES": "8", "SLURM_CONF": "/etc/x", "HOME": "/h", "SBATCH_ACCOUNT": "mine"}
    assert without_job_variables(inside) == {"SLURM_CONF": "/etc/x", "HOME": "/h", "SBATCH_ACCOUNT": "mine"}


def test_slurms_words_are_shown_without_the_commands_name() -> None:
    said = subprocess.CompletedProcess(
        [], 1, "", "sbatch: error: invalid partition specified: x\nallocation failure: Y\n"
    )
    assert words_of(said) == "invalid partition specified: x\nallocation failure: Y"
