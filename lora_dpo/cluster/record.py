"""What became of a run's cluster jobs: `slurm/jobs.jsonl` in its folder, one line an event, only ever added to."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from lora_dpo.recipe.run_folder import RunFolder

Event = Literal["submitted", "started", "ended"]


@dataclass(frozen=True, slots=True)
class Record:
    """The record of one run's jobs.

    A line has at least `time` and `event`, and of a job `job`, `array_task`, `restart`, `stage` and `nodes`; one that
    ended also `cause`, `reason`, `exit_code`, `step` and `requeued`.
    """

    run: RunFolder

    @property
    def path(self) -> os.PathLike[str]:
        """The file."""
        return self.run.slurm / "jobs.jsonl"

    def append(self, event: Event, **values: Any) -> bool:
        """Adds a line; a disk that takes none is no reason for a training to die.

        Returns:
            Whether the line was written.
        """
        line = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "event": event, **values}
        try:
            self.run.slurm.mkdir(parents=True, exist_ok=True)
            # One write, so that lines of several tasks do not mix; a newline first ends what a full disk cut off.
            torn = "" if _ends_a_line(self.path) else "\n"
            with open(self.path, "ab", buffering=0) as file:
                file.write((torn + json.dumps(line, ensure_ascii=False) + "\n").encode())
        except OSError:
            return False
        return True

    def events(self) -> list[dict[str, Any]]:
        """Returns all events, oldest first; without the lines that a full disk has cut off."""
        try:
            with open(self.path, encoding="utf-8", errors="replace") as file:
                lines = file.read().splitlines()
        except OSError:
            return []
        events = []
        for line in lines:
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict) and "event" in event:
                events.append(event)
        return events


def open_jobs(events: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the numbers of the jobs that have not ended for good, as far as their run's record knows."""
    jobs: dict[str, bool] = {}
    for event in events:
        if number := event.get("job"):
            jobs[number] = event["event"] != "ended" or bool(event.get("requeued"))
    return [number for number, is_open in jobs.items() if is_open]


def _ends_a_line(path: os.PathLike[str]) -> bool:
    try:
        with open(path, "rb") as file:
            if file.seek(0, os.SEEK_END) == 0:
                return True
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"\n"
    except FileNotFoundError:
        return True
