"""What `lora-dpo cancel` does: a training that runs saves first, what waits is taken out of the queue."""

from __future__ import annotations

import time
from typing import cast

from lora_dpo.cluster.finding import submitted_recipe
from lora_dpo.cluster.record import Record
from lora_dpo.cluster.slurm_client import NoSlurmError, run_command, words_of
from lora_dpo.cluster.status import JobStatus, RunStatus, job_now
from lora_dpo.console import err, note
from lora_dpo.errors import UserError
from lora_dpo.files import write_text
from lora_dpo.recipe.run_folder import RunFolder
from lora_dpo.recipe.schema import Stage
from lora_dpo.recipe.stages import stage_recipe

REASON = "lora-dpo cancel"
"""What the stop file says; jobs start themselves again after other reasons, but not after this one."""
_LOOKS_EACH_SECONDS = 2.0


def cancel(status: RunStatus, job: str | None, *, now: bool) -> list[str]:
    """Ends the jobs of a run; returns when none of them waits or runs any more.

    Args:
        status: What is known of the run.
        job: Only this job and those that wait for it; None means all.
        now: Do not save first.

    Returns:
        The numbers of the jobs that were ended.

    Raises:
        UserError: There is none to end, or Slurm refuses.
    """
    open_jobs = [each for each in status.jobs if each.is_open]
    if job is not None:
        numbers = [each.job for each in open_jobs]
        open_jobs = open_jobs[numbers.index(job) :] if job in numbers else []
    if not open_jobs:
        raise UserError(
            f"{status.run.path} has no job that waits or runs{f', of number {job}' if job else ''}.",
            fix=f"See what there was: lora-dpo status {status.run.path}",
        )
    saves = [] if now else [each for each in open_jobs if _can_save(status.run, each)]
    # What waits goes first: a job of a chain would begin when the one before it ends.
    others = [each.job for each in open_jobs if each not in saves]
    if others:
        _scancel(others)
        note(f"Cancelled: {', '.join(others)}.")
    starts = {each.job: _starts(status.run, each) for each in saves}
    for each in saves:
        _ask_to_save(status.run, each)
        note(f"Job {each.job} was asked to save and leave after its step. Ctrl-C stops waiting, and not the job.")
    for each in open_jobs:
        _wait_for(status.run, each, starts.get(each.job))
    return [each.job for each in open_jobs]


def _can_save(run: RunFolder, job: JobStatus) -> bool:
    """Returns whether a job is a training that has something to save, or will look for the stop file."""
    own = _own_run(run, job)
    return job.state == "RUNNING" and own is not None and own.path.is_dir()


def _own_run(run: RunFolder, job: JobStatus) -> RunFolder | None:
    """Returns the run of a job's stage; None for a job that trains nothing."""
    if job.step not in ("sft", "dpo"):
        return None
    recipe = submitted_recipe(run)
    if recipe is None or recipe.run.stage == job.step:
        return run
    return RunFolder(run.path.parent / stage_recipe(recipe, cast(Stage, job.step)).run.name)


def _ask_to_save(run: RunFolder, job: JobStatus) -> None:
    own = _own_run(run, job)
    if own is not None:
        write_text(own.stop_file, REASON)


def _scancel(numbers: list[str]) -> None:
    result = run_command(["scancel", *numbers])
    if result.returncode:
        raise UserError(f"Slurm would not cancel {', '.join(numbers)}: {words_of(result)}")


def _wait_for(run: RunFolder, job: JobStatus, starts: int | None) -> None:
    """Waits for a job's end; one that has been asked to save, having had so many starts, is asked at each further one.

    A start forgets what an earlier one was asked.
    """
    with err.status(f"Waiting for job {job.job} to end"):
        while not _has_ended(run, job.job):
            time.sleep(_LOOKS_EACH_SECONDS)
            if starts is not None and _starts(run, job) > starts:
                starts = _starts(run, job)
                _ask_to_save(run, job)


def _starts(run: RunFolder, job: JobStatus) -> int:
    return sum(event["event"] == "started" and event.get("job") == job.job for event in Record(run).events())


def _has_ended(run: RunFolder, number: str) -> bool:
    last = next((event for event in reversed(Record(run).events()) if event.get("job") == number), None)
    try:
        found = job_now(number, last)
    except NoSlurmError:  # it was asked already, so it is there, and will answer again
        return False
    return found is None or found.has_ended
