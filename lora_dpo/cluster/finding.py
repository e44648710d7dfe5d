"""From a word on the command line, RUN or JOB, to the run folder that it means."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from lora_dpo.cluster.record import Record
from lora_dpo.cluster.slurm_client import NoSlurmError, find_job
from lora_dpo.errors import UserError, did_you_mean, nearest
from lora_dpo.recipe.loading import load_recipe
from lora_dpo.recipe.run_folder import RunFolder
from lora_dpo.recipe.schema import Recipe

_JOB = re.compile(r"\d+(?:_\d+)?")
_RUNS = Path("runs")


def find_run(word: str) -> tuple[RunFolder, str | None]:
    """Returns the run that a word names, and the job where it is the number of one.

    Args:
        word: A run folder, the name of one in `runs/`, or the number of a job.

    Raises:
        UserError: There is no such run, it has no jobs, or nobody knows the job.
    """
    if _JOB.fullmatch(word) and not Path(word).is_dir():
        return _run_of(word), word
    for place in (Path(word).expanduser(), _RUNS / word):
        run = RunFolder(place)
        if has_jobs(run):
            return run, None
        if run.is_run:
            raise UserError(
                f"No cluster job of {place} is known.",
                why=f"There is no {run.slurm / 'jobs.jsonl'}: it was not submitted.",
                fix="Submit one by `lora-dpo submit RECIPE`; what a run came to, `lora-dpo show` and its report tell.",
            )
    known = {run.path.name: str(run.path) for run in runs_with_jobs(_RUNS)}
    near = nearest(Path(word).name, known)
    fix = f"Did you mean '{known[near]}'?" if near else did_you_mean(word, known.values())
    fix = fix or "Runs are looked for in runs/ here; give another one by its path."
    raise UserError(f"There is no run {word} with cluster jobs.", fix=fix)


def has_jobs(run: RunFolder) -> bool:
    """Returns whether a run has a record of cluster jobs."""
    return (run.slurm / "jobs.jsonl").is_file()


def runs_with_jobs(folder: Path) -> Iterator[RunFolder]:
    """Yields the runs in a folder that have a record of cluster jobs, the ones whose record changed last first."""
    records = list(folder.glob("*/slurm/jobs.jsonl"))
    for record in sorted(records, key=lambda file: file.stat().st_mtime, reverse=True):
        yield RunFolder(record.parent.parent)


def submitted_recipe(run: RunFolder) -> Recipe | None:
    """Returns the recipe that a run's jobs carry out; None where it cannot be read."""
    for file in (run.slurm / "recipe.yaml", run.recipe):
        if file.is_file():
            try:
                return load_recipe(file)
            except UserError:  # of another version
                return None
    return None


def _run_of(job: str) -> RunFolder:
    """Returns the run of a job: by where Slurm says that its output goes, else by the records below `runs/`."""
    for run in runs_with_jobs(_RUNS):
        if any(event.get("job") == job for event in Record(run).events()):
            return run
    try:
        found = find_job(job)
    except NoSlurmError:
        found = None
    if found is not None:
        log = Path(found.log)
        if log.parent.name == "logs" and log.parent.parent.name == "slurm":
            return RunFolder(log.parent.parent.parent)
        raise UserError(
            f"Job {job} ({found.name}) is none that lora-dpo submitted.",
            why=f"Its output is {found.log or 'not known'}, which is in no run folder.",
            fix="Give the run folder instead.",
        )
    raise UserError(
        f"Nobody knows a job {job}: neither a run in {_RUNS}/ here, nor Slurm.",
        why="Slurm forgets jobs some minutes after their end, where it keeps no accounts.",
        fix="Give the run folder instead.",
    )
