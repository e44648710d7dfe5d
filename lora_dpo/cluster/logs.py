"""What `lora-dpo logs` does: finds a run's newest logs and prints them, or follows them over restarts."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lora_dpo.cluster.record import Record
from lora_dpo.errors import UserError, did_you_mean
from lora_dpo.recipe.run_folder import RunFolder

_NAME = re.compile(r"(?P<stage>[a-z]+)-(?P<job>\d+)(?:\.(?P<restart>\d+))?(?:\.(?P<node>[^/]+))?\.out")
_LOOKS_EACH_SECONDS = 1.0
_ASKS_EACH_SECONDS = 5.0
_TAIL_LINES = 40


@dataclass(frozen=True, slots=True, order=True)
class Log:
    """One log of a run.

    Attributes:
        job: The job's number.
        restart: How often it had been started before; -1 for what comes before and after the training itself.
        node: The node, where there are several.
        stage: What the job does.
        path: The file.
    """

    job: int
    restart: int
    node: str
    stage: str = field(compare=False)
    path: Path = field(compare=False)


def logs_of(run: RunFolder, *, job: str | None = None, stage: str | None = None) -> list[Log]:
    """Returns a run's logs, oldest first.

    Args:
        run: The run.
        job: Only this job's.
        stage: Only this stage's.

    Raises:
        UserError: There are none.
    """
    found = sorted(_logs_in(run.slurm / "logs"))
    chosen = [log for log in found if (job is None or log.job == int(job.partition("_")[0]))]
    chosen = [log for log in chosen if stage is None or log.stage == stage]
    if chosen:
        return chosen
    if stage is not None and found:
        raise UserError(
            f"{run.path} has no log of a job {stage}.", fix=did_you_mean(stage, sorted({log.stage for log in found}))
        )
    of_job = f" of job {job}" if job is not None else ""
    raise UserError(
        f"{run.path} has no log{of_job} yet.",
        why="A job writes its log when it starts.",
        fix=f"See what it waits for: lora-dpo status {run.path}",
    )


def newest_start(run: RunFolder, logs: list[Log]) -> list[Log]:
    """Returns the log of the newest job, and those of its newest start's other nodes.

    The first node's lines are in the job's own log too, among what its script has to say of each start.
    """
    of_job = [log for log in logs if log.job == logs[-1].job]
    whole = [log for log in of_job if log.restart < 0]
    if not whole:
        return [log for log in of_job if log.restart == of_job[-1].restart]
    first = _first_node(run, of_job[-1])
    others = [log for log in of_job if log.restart == of_job[-1].restart >= 0 and log.node not in ("", first)]
    return [*whole, *others]


def show(logs: list[Log], lines: int | None = None) -> None:
    """Prints logs, each below its name; the last `lines` of each, or all."""
    for log in logs:
        text = log.path.read_text(encoding="utf-8", errors="replace")
        shown = text.splitlines(keepends=True)
        if lines is not None:
            shown = shown[-lines:]
        if text:
            sys.stdout.write(f"==> {log.path} <==\n{''.join(shown)}")
            if not text.endswith("\n"):
                sys.stdout.write("\n")
    sys.stdout.flush()


def follow(find: Callable[[], list[Log]], has_ended: Callable[[], bool]) -> None:
    """Prints the newest logs as they grow, those of later starts and jobs too, until the jobs have ended.

    Args:
        find: Returns the logs that are to be followed; raises UserError while there are none.
        has_ended: Whether no more is to come; it is asked in quiet moments, some seconds apart.
    """
    places: dict[Path, int] = {}
    last: Path | None = None
    asked, ended = 0.0, False
    while True:
        grown = False
        for log in _or_none(find):
            if log.path not in places:
                places[log.path] = 0 if places else _last_lines(log.path)
            for text in _new_text(log.path, places):
                if last != log.path:
                    sys.stdout.write(f"==> {log.path} <==\n")
                    last = log.path
                sys.stdout.write(text)
                grown = True
        sys.stdout.flush()
        if grown:
            continue
        if ended:  # and nothing has come since that was found out
            return
        if time.monotonic() - asked >= _ASKS_EACH_SECONDS:
            asked, ended = time.monotonic(), has_ended()
        else:
            time.sleep(_LOOKS_EACH_SECONDS)


def _first_node(run: RunFolder, log: Log) -> str:
    """Returns the node that a start's script ran on."""
    for event in reversed(Record(run).events()):
        if event.get("job") == str(log.job) and event.get("restart") == log.restart and event.get("nodes"):
            return str(event["nodes"][0])
    return ""


def _or_none(find: Callable[[], list[Log]]) -> list[Log]:
    try:
        return find()
    except UserError:
        return []


def _logs_in(folder: Path) -> Iterator[Log]:
    for path in folder.glob("*.out"):
        if match := _NAME.fullmatch(path.name):
            restart = -1 if match["restart"] is None else int(match["restart"])
            yield Log(int(match["job"]), restart, match["node"] or "", match["stage"], path)


def _last_lines(path: Path) -> int:
    """Returns where the last lines of a log begin, in bytes."""
    lines = path.read_bytes().splitlines(keepends=True)
    return sum(map(len, lines[:-_TAIL_LINES])) if len(lines) > _TAIL_LINES else 0


def _new_text(path: Path, places: dict[Path, int]) -> Iterator[str]:
    """Yields what has come since, in whole lines, so that several nodes' do not mix."""
    with path.open("rb") as file:
        file.seek(places[path])
        new = file.read()
    whole = new[: new.rfind(b"\n") + 1]
    if whole:
        places[path] += len(whole)
        yield whole.decode("utf-8", errors="replace")
