"""Slurm's own commands: what they are given, and what is read out of their answers."""

from __future__ import annotations

import getpass
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from lora_dpo.errors import UserError

_ANSWERS_WITHIN_SECONDS = 60.0
_WITH_SPACES = ("Command", "WorkDir", "StdErr", "StdIn", "StdOut", "Comment", "Dependency")
"""Fields of `scontrol show job` that take the rest of their line."""
_TIME_FORMAT = "%Y-%m-%dT%H:%M:%S"
_ENDED = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED",
    "REVOKED", "TIMEOUT",
}  # fmt: skip
_LEAVING = {"COMPLETING"}
_SACCT_FIELDS = "JobID,State,ExitCode,NodeList,Start,End,Timelimit,Partition,JobName"
_NOT_FOR_JOBS = re.compile(r"SLURM_(?!CONF$|CLUSTERS$|TIME_FORMAT$).*")


@dataclass(frozen=True, slots=True)
class Job:
    """What Slurm says of a job.

    Attributes:
        id: Its number; of a task of an array with the task's.
        state: Slurm's word, such as PENDING.
        reason: Why it waits, in Slurm's words; empty where there is none.
        nodes: Its nodes in Slurm's short form, such as `node[1-2]`; empty before it starts.
        restarts: How often it was requeued; None where that is not known.
        start: When it started, or is expected to.
        end: When it ended, or must have.
        time_limit: Its wall time as Slurm writes it.
        exit_code: `code:signal`.
        partition: Its partition.
        name: Its name.
        log: What it writes its output to.
        folder: Its working directory.
        dependency: The jobs that it waits for, as Slurm writes it.
    """

    id: str
    state: str
    reason: str = ""
    nodes: str = ""
    restarts: int | None = None
    start: datetime | None = None
    end: datetime | None = None
    time_limit: str = ""
    exit_code: str = ""
    partition: str = ""
    name: str = ""
    log: str = ""
    folder: str = ""
    dependency: str = ""

    @property
    def has_ended(self) -> bool:
        """Whether it will not run again by itself."""
        return self.state in _ENDED

    @property
    def is_running(self) -> bool:
        """Whether it has nodes."""
        return self.state in {"RUNNING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", *_LEAVING}


class NoSlurmError(UserError):
    """Slurm's commands are not on this machine, or its controller does not answer."""


def check_is_here() -> None:
    """Checks that this machine has Slurm's commands.

    Raises:
        NoSlurmError: It has not.
    """
    if shutil.which("scontrol") is None:
        raise _no_command("scontrol")


def run_command(
    command: Sequence[str], environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs one of Slurm's commands to its end, whatever that is.

    Args:
        command: The words.
        environment: Its whole environment; None is this process's own.

    Raises:
        NoSlurmError: There is no such command, or it does not answer.
    """
    try:
        return subprocess.run(
            list(command), env=environment, capture_output=True, text=True, timeout=_ANSWERS_WITHIN_SECONDS, check=False
        )
    except FileNotFoundError:
        raise _no_command(command[0]) from None
    except subprocess.TimeoutExpired:
        raise NoSlurmError(
            f"{command[0]} has not answered for {_ANSWERS_WITHIN_SECONDS:.0f} seconds.",
            why="Slurm's controller may be down or very busy.",
            fix="`scontrol ping` tells. Try again later; jobs that run go on.",
        ) from None


def show_job(job: str) -> Job | None:
    """Returns what the controller knows of a job; None once it has forgotten it.

    Raises:
        NoSlurmError: Slurm is not here, or does not answer.
    """
    result = _ask(["scontrol", "show", "job", job])
    if result.returncode:
        if "Invalid job id" in result.stderr:
            return None
        raise _unreachable(result)
    jobs = parse_scontrol(result.stdout)
    return jobs[0] if jobs else None


def find_job(job: str) -> Job | None:
    """Returns what Slurm knows of a job: its controller, or after that its accounting, where there is one.

    Raises:
        NoSlurmError: Slurm is not here, or does not answer.
    """
    return show_job(job) or _accounted(job)


def find_named(name: str) -> list[Job]:
    """Returns the user's own jobs of a name that wait or run.

    Raises:
        NoSlurmError: Slurm is not here, or does not answer.
    """
    result = _ask(["squeue", "--noheader", f"--user={getpass.getuser()}", f"--name={name}", "--format=%A"])
    if result.returncode:
        raise _unreachable(result)
    return [job for number in dict.fromkeys(result.stdout.split()) if (job := show_job(number)) is not None]


def parse_scontrol(text: str) -> list[Job]:
    """Returns the jobs in the output of `scontrol show job`."""
    return [_job(_fields(block)) for block in re.split(r"\n\s*\n", text) if "JobId=" in block]


def parse_sacct(text: str) -> list[Job]:
    """Returns the jobs in the output of `sacct -X -n -P` with this module's fields."""
    jobs = []
    for line in text.splitlines():
        number, state, exit_code, nodes, start, end, limit, partition, name = line.split("|", maxsplit=8)
        jobs.append(
            Job(
                number,
                state.split()[0].rstrip("+"),  # `CANCELLED by 0`
                nodes="" if nodes == "None assigned" else nodes,
                start=_time(start),
                end=_time(end),
                time_limit=limit,
                exit_code=exit_code,
                partition=partition,
                name=name,
            )
        )
    return jobs


def without_job_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Returns an environment to submit from: inside of a job, Slurm's variables would be taken for the new one's."""
    return {name: value for name, value in environment.items() if not _NOT_FOR_JOBS.fullmatch(name)}


def words_of(result: subprocess.CompletedProcess[str]) -> str:
    """Returns what a command has said, a line each and without its name in front."""
    lines = [line.strip() for line in (result.stderr + result.stdout).splitlines() if line.strip()]
    return "\n".join(re.sub(r"^(?:sbatch|scancel|scontrol|sacct|squeue): (?:error: )?", "", line) for line in lines)


def _accounted(job: str) -> Job | None:
    """Returns what the accounting knows; None where there is no accounting, or it knows nothing."""
    if shutil.which("sacct") is None:
        return None
    command = ["sacct", "-X", "-n", "-P", "-D", "-j", job, f"--format={_SACCT_FIELDS}"]
    result = _ask(command)
    found = [] if result.returncode else parse_sacct(result.stdout)  # without slurmdbd it fails, or says nothing
    return found[-1] if found else None  # -D lists each start; the last one counts


def _ask(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return run_command(command, {**os.environ, "SLURM_TIME_FORMAT": "standard"})


def _fields(block: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    for raw in block.splitlines():
        line = raw.strip()
        key = line.partition("=")[0]
        if key in _WITH_SPACES:
            fields[key] = line.partition("=")[2].strip()
            continue
        if " JobName=" in line and "JobName" not in fields:  # the last of its line, and it may hold spaces
            line, _, fields["JobName"] = line.partition(" JobName=")
        for word in line.split():
            key, equals, value = word.partition("=")
            if equals:
                fields.setdefault(key, value)
        if " Dependency=" in line:
            fields["Dependency"] = line.rpartition(" Dependency=")[2]
    return {key: "" if value in ("(null)", "None", "N/A") else value for key, value in fields.items()}


def _job(fields: Mapping[str, str]) -> Job:
    array, task = fields.get("ArrayJobId"), fields.get("ArrayTaskId")
    known: dict[str, Any] = {
        "reason": fields.get("Reason", ""),
        "nodes": fields.get("NodeList", ""),
        "restarts": int(fields["Restarts"]) if fields.get("Restarts", "").isdecimal() else None,
        "start": _time(fields.get("StartTime", "")),
        "end": _time(fields.get("EndTime", "")),
        "time_limit": fields.get("TimeLimit", ""),
        "exit_code": fields.get("ExitCode", ""),
        "partition": fields.get("Partition", ""),
        "name": fields.get("JobName", ""),
        "log": fields.get("StdOut", ""),
        "folder": fields.get("WorkDir", ""),
        "dependency": fields.get("Dependency", ""),
    }
    return Job(f"{array}_{task}" if array and task else fields["JobId"], fields.get("JobState", "UNKNOWN"), **known)


def _time(text: str) -> datetime | None:
    try:
        return datetime.strptime(text, _TIME_FORMAT)
    except ValueError:
        return None


def _no_command(name: str) -> NoSlurmError:
    return NoSlurmError(
        f"This machine has no {name}, so it is no login node of a Slurm cluster.",
        fix="Call it on the login node; or train here: lora-dpo run RECIPE",
    )


def _unreachable(result: subprocess.CompletedProcess[str]) -> NoSlurmError:
    return NoSlurmError(
        "Slurm's controller cannot be asked.",
        why=words_of(result),
        fix="`scontrol ping` tells whether it is up. Jobs that run go on without it.",
    )
