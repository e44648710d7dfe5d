"""Hands planned jobs to Slurm: asks it first, submits all or none, and keeps a record in the run's folder."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dotenv import dotenv_values, find_dotenv

from lora_dpo.cluster.freezing import code_version, freeze
from lora_dpo.cluster.job import CHAIN
from lora_dpo.cluster.planning import Plan, PlannedJob
from lora_dpo.cluster.profile import is_secret
from lora_dpo.cluster.record import Record
from lora_dpo.cluster.slurm_client import NoSlurmError, find_named, run_command, without_job_variables, words_of
from lora_dpo.console import note
from lora_dpo.credentials import TOKEN_NAMES
from lora_dpo.errors import UserError
from lora_dpo.files import write_json
from lora_dpo.recipe.run_folder import RunFolder

_NUMBER = re.compile(r"^(\d+)(?:;.*)?$", re.MULTILINE)
SUBMISSION = "submission.json"
"""In `RUN/slurm/`: how the newest jobs of the run came about."""


def job_environment(environment: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Returns the environment that jobs are submitted from, and the names of the secrets in it.

    Slurm keeps a copy of it with each job, so a secret that the job finds in `.env` by itself is left out. So is the
    word of a chain that was submitted by hand, which these jobs do not belong to.
    """
    file = find_dotenv(usecwd=True)
    found = dotenv_values(file) if file else {}
    in_file = {found.get(name) for name in TOKEN_NAMES} - {None, ""}
    kept = {
        name: value
        for name, value in without_job_variables(environment).items()
        if name != CHAIN and not (name in TOKEN_NAMES and value in in_file)
    }
    # What submits is what runs, however its Python was called; a profile's setup may still choose another.
    kept["PATH"] = os.pathsep.join(
        dict.fromkeys([str(Path(sys.executable).parent), *kept.get("PATH", os.defpath).split(os.pathsep)])
    )
    if sys.prefix != sys.base_prefix:
        kept["VIRTUAL_ENV"] = sys.prefix
    return kept, sorted(name for name in kept if is_secret(name) and kept[name])


def ask_slurm(job: PlannedJob, environment: Mapping[str, str]) -> str:
    """Asks Slurm whether it would take a job; nothing is submitted.

    Returns:
        What Slurm said: when and where it would start.

    Raises:
        UserError: It would not; the message has Slurm's own words.
    """
    # Without the jobs that it waits for, which are not there yet.
    command = replace(job, after_success=(), after_end=()).command((), "--test-only")
    result = run_command(command, {**environment, **job.environment})
    if result.returncode:
        raise UserError(
            f"Slurm would not take the job {job.step}: {words_of(result)}",
            why=f"It was asked by: {shlex.join(command)}",
            fix="Correct it by --partition, --account, --qos, --time, --nodes or --gpus-per-node, in the recipe's "
            "section slurm, or in the profile. `sinfo` shows partitions and their limits.",
        )
    return re.sub(r"^Job \d+ ", "", words_of(result))  # a number that the job will not have


class Submitter:
    """Submits jobs one after the other.

    Args:
        environment: What they are submitted from.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.numbers: list[str] = []
        self._environment = environment

    @contextmanager
    def all_or_none(self) -> Iterator[None]:
        """Cancels what was submitted inside of it if Slurm, a disk or Ctrl-C keeps it from its end.

        Raises:
            UserError: What kept it from its end, with what became of the jobs before.
        """
        try:
            yield
        except UserError as error:
            why = "\n".join(words for words in (error.why, self._take_back()) if words)
            raise UserError(error.what, why=why, fix=error.fix, where=error.where) from error
        except BaseException:
            if words := self._take_back():
                note(words)
            raise

    def plan(self, plan: Plan) -> list[str]:
        """Freezes what a run's jobs are started from, and submits them.

        Returns:
            Their numbers.

        Raises:
            UserError: Slurm refused one, or does not answer.
        """
        freeze(plan.frozen, plan.recipe, plan.profile)
        plan.run.stop_file.unlink(missing_ok=True)  # it was meant for an earlier job
        numbers: list[str] = []
        for job in plan.jobs:
            numbers.append(self.job(job, numbers, plan.run))
        _write_submission(plan, numbers)
        return numbers

    def job(self, job: PlannedJob, numbers: Sequence[str], run: RunFolder) -> str:
        """Submits one job, and writes it down.

        Args:
            job: The job.
            numbers: Those that its conditions are about.
            run: Whose record it goes into.

        Returns:
            Its number.

        Raises:
            UserError: Slurm refused it, or does not answer.
        """
        # A job whose output has no folder fails without a word.
        logs = run.slurm / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        try:
            result = run_command(job.command(numbers, "--parsable"), {**self._environment, **job.environment})
        except BaseException:  # Slurm may have taken it before it was too late to say so
            unheard_of = [number for number in _in_queue(job, logs) if number not in self.numbers]
            if not unheard_of:
                note(f"Slurm may still take the job {job.step}. See whether it has: squeue --me --name={job.name}")
            self.numbers += unheard_of
            raise
        found = _NUMBER.search(result.stdout)
        if result.returncode or found is None:
            raise UserError(f"Slurm refused the job {job.step}: {words_of(result)}")
        self.numbers.append(found[1])
        Record(run).append("submitted", job=found[1], array_task=None, restart=0, stage=job.step, nodes=[])
        return found[1]

    def _take_back(self) -> str:
        """Cancels all jobs; returns what became of them, in words."""
        if not self.numbers:
            return ""
        try:
            done = run_command(["scancel", *self.numbers]).returncode == 0
        except NoSlurmError:
            done = False
        if done:
            return f"The jobs before it were cancelled again: {', '.join(self.numbers)}."
        return f"The jobs before it could not be cancelled, so do it by hand: scancel {' '.join(self.numbers)}"


def _in_queue(job: PlannedJob, logs: Path) -> list[str]:
    """Returns the numbers of the jobs of its name whose output goes to these logs, as far as Slurm answers."""
    try:
        return [found.id for found in find_named(job.name) if Path(found.log).parent == logs]
    except NoSlurmError:
        return []


def _write_submission(plan: Plan, numbers: Sequence[str]) -> None:
    write_json(
        plan.run.slurm / SUBMISSION,
        {
            "schema_version": 1,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "code": code_version(),
            "nodes": plan.size.nodes,
            "processes": plan.size.world,
            "jobs": [
                {"job": number, "stage": job.step, "command": job.command(numbers, "--parsable")}
                for number, job in zip(numbers, plan.jobs, strict=True)
            ],
        },
    )


def as_json(plan: Plan, numbers: list[str]) -> dict[str, Any]:
    """Returns what `lora-dpo submit --json` says of a run."""
    return {
        "run": str(plan.run.path),
        "nodes": plan.size.nodes,
        "gpus_per_node": plan.size.gpus,
        "processes": plan.size.world,
        "jobs": [
            {
                "job": numbers[place] if numbers else None,
                "stage": job.step,
                "command": job.command(numbers or placeholders(plan), "--parsable"),
                "environment": dict(job.environment),
            }
            for place, job in enumerate(plan.jobs)
        ],
    }


def placeholders(plan: Plan) -> list[str]:
    """Returns what stands for the numbers that jobs do not have yet."""
    return [f"JOB{place}" for place in range(1, len(plan.jobs) + 1)]


def environment_lines(environment: Mapping[str, str]) -> list[str]:
    """Returns variables as a user would set them in a shell."""
    return [f"{name}={shlex.quote(value)}" for name, value in environment.items()]
