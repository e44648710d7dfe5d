"""What `lora-dpo status` knows of a run: its jobs by Slurm and by their own record, and how far the training is."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, cast

from lora_dpo.cluster.advance import Advance, advance_of
from lora_dpo.cluster.finding import submitted_recipe
from lora_dpo.cluster.record import Record
from lora_dpo.cluster.slurm_client import Job, NoSlurmError, find_job
from lora_dpo.cluster.submission import SUBMISSION
from lora_dpo.recipe.run_folder import RunFolder
from lora_dpo.recipe.schema import Recipe, Stage
from lora_dpo.recipe.stages import stage_recipe

_SAID_BY_SLURM = {
    "TIMEOUT": "Slurm ended it at its time limit.",
    "CANCELLED": "It was cancelled.",
    "NODE_FAIL": "A node of it failed.",
    "OUT_OF_MEMORY": "It needed more memory than it had asked for.",
    "PREEMPTED": "It was preempted.",
    "DEADLINE": "It could not be through before its deadline.",
    "BOOT_FAIL": "A node did not start.",
}

_CONDITION = re.compile(r"(afterok|afterany):(\d+)")
_CONDITIONS = {"afterok": "to succeed", "afterany": "to end"}
_SAYS = {
    "BeginTime": "Slurm lets a requeued job wait for two minutes",
    "Priority": "Priority: others are before it",
    "Resources": "Resources: no nodes are free",
    "JobHeldUser": "held: `scontrol release` lets it go",
    "Requeueing": "Slurm is putting it back into the queue",
}
_RETURNS_WITHIN = timedelta(seconds=30)
"""A job that is requeued has ended, by Slurm's words, until it waits again."""
_TAKEN_BY_SLURM = ("NODE_FAIL", "PREEMPTED", "BOOT_FAIL")
"""What Slurm calls a job whose nodes it took, and which it requeues itself where it may."""
_TAKEN = "Slurm took its nodes before it could say why: a preemption with too little grace, or a node that failed."


@dataclass(frozen=True, slots=True)
class Restart:
    """A start of a job that did not end it.

    Attributes:
        job: The job.
        time: When it ended, as the record has it; empty where it has nothing.
        reason: Why.
        step: The step of the newest checkpoint then.
    """

    job: str
    time: str
    reason: str
    step: int | None


@dataclass(frozen=True, slots=True)
class JobStatus:
    """One job of a run.

    Attributes:
        job: Its number.
        step: What it does: sft, dpo, merge, push.
        state: Slurm's word, or one of the record's where Slurm has forgotten it; CHAINED is one that left the rest to
            the next job of its chain.
        nodes: Its nodes, in Slurm's short form.
        waits_for: Why it waits.
        start: When it started, or is expected to.
        end: When it ended, or must have.
        time_limit: Its wall time.
        ended: Why it ended; empty while it has not.
    """

    job: str
    step: str
    state: str
    nodes: str = ""
    waits_for: str = ""
    start: datetime | None = None
    end: datetime | None = None
    time_limit: str = ""
    ended: str = ""

    @property
    def is_open(self) -> bool:
        """Whether it waits or runs."""
        return not self.ended


@dataclass(frozen=True, slots=True)
class RunStatus:
    """What is known of a run.

    Attributes:
        run: The run.
        jobs: Its newest jobs, in the order in which they were submitted.
        stage: The stage that is trained, or was last.
        advance: How far it is.
        restarts: The starts of those jobs that did not end them.
        report: The report, once it is there.
        remark: What could not be found out.
    """

    run: RunFolder
    jobs: tuple[JobStatus, ...]
    stage: Stage
    advance: Advance | None
    restarts: tuple[Restart, ...] = ()
    report: Path | None = None
    remark: str = ""

    @property
    def has_ended(self) -> bool:
        """Whether no job of it waits or runs."""
        return not any(job.is_open for job in self.jobs)

    @property
    def failed(self) -> JobStatus | None:
        """The job that the run's end is due to, in a chain its last one; None where all steps came through."""
        last_of_steps = {job.step: job for job in self.jobs}
        return next((job for job in last_of_steps.values() if job.state != "COMPLETED"), None)

    @property
    def logs(self) -> Path:
        """Where its logs are."""
        return self.run.slurm / "logs"

    def as_json(self) -> dict[str, Any]:
        """Returns what `lora-dpo status --json` prints of it."""
        return {
            "run": str(self.run.path),
            "ended": self.has_ended,
            "stage": self.stage,
            "progress": None if self.advance is None else asdict(self.advance),
            "jobs": [_plain(asdict(job)) for job in self.jobs],
            "restarts": [asdict(restart) for restart in self.restarts],
            "logs": str(self.logs),
            "report": None if self.report is None else str(self.report),
            "remark": self.remark,
        }


@dataclass(slots=True)
class _Known:
    """What the record says of a job."""

    step: str
    events: list[dict[str, Any]] = field(default_factory=list)

    @property
    def end(self) -> dict[str, Any] | None:
        """The event that ended it for good, as far as the record knows."""
        last = self.events[-1]
        return last if last["event"] == "ended" and not last.get("requeued") else None


def status_of(run: RunFolder) -> RunStatus:
    """Finds out what is known of a run; nothing is written.

    Slurm is asked only for jobs that have not said themselves that they ended.
    """
    events = Record(run).events()
    known = _newest_jobs(run, events)
    jobs, restarts, remark = [], [], ""
    for number, record in known.items():
        found = None
        if record.end is None and not remark:
            try:
                found = job_now(number, record.events[-1])
            except NoSlurmError as error:
                remark = str(error)
        jobs.append(_job_status(number, record, found, asked=not remark))
        restarts += _restarts(number, record, found)
    recipe = submitted_recipe(run)
    stage = _stage(jobs)
    own, advance = run, None
    if recipe is not None:
        own, staged = _of_stage(run, recipe, stage)
        advance = advance_of(own, staged)
    report = run.report_md if run.is_complete else None
    return RunStatus(run, tuple(jobs), stage, advance, tuple(restarts), report, remark)


def job_now(number: str, last: Mapping[str, Any] | None) -> Job | None:
    """Returns what Slurm knows of a job; one that has only just ended and may come back waits already.

    Args:
        number: Its number.
        last: The last that the run's record has of it.

    Raises:
        NoSlurmError: Slurm is not here, or does not answer.
    """
    found = find_job(number)
    if found is None or not found.has_ended or last is None or found.end is None:
        return found
    asked_for = bool(last.get("requeued")) and found.state != "CANCELLED"
    taken = last["event"] == "started" and found.state in _TAKEN_BY_SLURM
    if (asked_for or taken) and abs(datetime.now() - found.end) < _RETURNS_WITHIN:
        return replace(found, state="PENDING", reason="Requeueing", nodes="", start=None, end=None)
    return found


def _restarts(number: str, record: _Known, found: Job | None) -> list[Restart]:
    """Returns the starts of a job that did not end it."""
    ended = [event for event in record.events if event["event"] == "ended" and event is not record.end]
    restarts = [
        Restart(number, str(event.get("time", "")), str(event.get("reason") or "unknown"), event.get("step"))
        for event in ended
    ]
    last = record.events[-1]
    if found is not None and found.state == "PENDING" and last["event"] == "started":
        restarts.append(Restart(number, "", _TAKEN, last.get("from_step")))
    return restarts


def _of_stage(run: RunFolder, recipe: Recipe, stage: Stage) -> tuple[RunFolder, Recipe]:
    """Returns a stage's run beside the given one, wherever the run's folder is called from, and its recipe."""
    staged = stage_recipe(recipe, stage) if recipe.run.stage != stage else recipe
    return RunFolder(run.path.parent / staged.run.name), staged


def _newest_jobs(run: RunFolder, events: Sequence[Mapping[str, Any]]) -> dict[str, _Known]:
    """Returns the jobs of the newest submission, and those that were submitted by hand since."""
    try:
        newest = json.loads((run.slurm / SUBMISSION).read_text(encoding="utf-8"))
        numbers = {str(job["job"]) for job in newest["jobs"]}
    except (OSError, ValueError, KeyError):
        numbers = set()
    known: dict[str, _Known] = {}
    seen = not numbers
    for event in events:
        number = str(event.get("job") or "")
        seen = seen or number in numbers
        if number and (seen or number in known):
            known.setdefault(number, _Known(str(event.get("stage") or "dpo"))).events.append(dict(event))
    return known


def _job_status(number: str, record: _Known, found: Job | None, *, asked: bool) -> JobStatus:
    last = record.events[-1]
    nodes = next((event["nodes"] for event in reversed(record.events) if event.get("nodes")), [])
    if record.end is not None:
        state = {"done": "COMPLETED", "asked": "STOPPED"}.get(str(last.get("cause")), "FAILED")
        state = "CHAINED" if last.get("action") == "chain" else state
        time = _local(last.get("time"))
        return JobStatus(number, record.step, state, ",".join(nodes), end=time, ended=_reason(last))
    if found is None and not asked:  # a controller that restarts ends nothing
        return JobStatus(number, record.step, "UNKNOWN", ",".join(nodes), waits_for="Slurm does not answer")
    if found is None:
        words = "Slurm no longer knows it, and it has not said how it ended."
        return JobStatus(number, record.step, "UNKNOWN", ",".join(nodes), ended=words)
    ended = ""
    if found.has_ended:
        by_slurm = _SAID_BY_SLURM.get(found.state, f"Slurm says {found.state}, exit code {found.exit_code}.")
        ended = _reason(last) if last["event"] == "ended" and found.state in ("COMPLETED", "FAILED") else by_slurm
    return JobStatus(
        number,
        record.step,
        found.state,
        found.nodes or ("" if found.state == "PENDING" else ",".join(nodes)),
        waits_for=_waits_for(found),
        start=found.start,
        end=found.end,
        time_limit=found.time_limit,
        ended=ended,
    )


def _waits_for(job: Job) -> str:
    if job.state != "PENDING":
        return ""
    if job.reason.startswith("Dependency") and job.dependency:
        waits = [f"{number} {_CONDITIONS[kind]}" for kind, number in _CONDITION.findall(job.dependency)]
        return f"waits for {' and '.join(waits)}" if waits else job.dependency
    return _SAYS.get(job.reason, job.reason)


def _reason(event: Mapping[str, Any]) -> str:
    return str(event.get("reason") or f"It ended with exit code {event.get('exit_code')}.")


def _stage(jobs: Sequence[JobStatus]) -> Stage:
    """Returns the training that runs, else the next one, else the last one."""
    trainings = [job for job in jobs if job.step in ("sft", "dpo")]
    running = [job for job in trainings if job.is_open]
    chosen = running[0] if running else trainings[-1] if trainings else None
    return "dpo" if chosen is None else cast(Stage, chosen.step)


def _local(time: Any) -> datetime | None:
    try:
        return datetime.fromisoformat(str(time)).astimezone().replace(tzinfo=None)
    except ValueError:
        return None


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {
        key: value.isoformat(timespec="seconds") if isinstance(value, datetime) else value
        for key, value in values.items()
    }
