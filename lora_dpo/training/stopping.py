"""Leaving in order: who may ask for it, and how all processes agree."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import psutil

from lora_dpo.console import EXIT_CODE_FILE, is_main_process

REASONS = ("", "a stop file", "SIGTERM", "SIGUSR1", "Ctrl-C", "train.max_hours", "the job's time limit")
"""What a stop can be asked by; the place in this list is what the processes agree on, 0 being nothing."""

_BY_SIGNAL = {
    signal.SIGTERM: REASONS.index("SIGTERM"),
    signal.SIGUSR1: REASONS.index("SIGUSR1"),
    signal.SIGINT: REASONS.index("Ctrl-C"),
}
_FILE = REASONS.index("a stop file")
_JOB_END = "SLURM_JOB_END_TIME"
_LOOKS_EACH_SECONDS = 1.0


class Stopped(BaseException):
    """The run has left in order and can go on later. No `Exception`: no library may take it for a failure.

    Args:
        reason: What asked for it.
        step: The optimizer step whose checkpoint was saved; None where there was nothing to save yet.
        max_steps: Optimizer steps of the whole training, where a step was made.
    """

    def __init__(self, reason: str, step: int | None = None, max_steps: int | None = None) -> None:
        self.reason, self.step, self.max_steps = reason, step, max_steps
        super().__init__(f"stopped by {reason}")

    def __str__(self) -> str:
        where = f"after step {self.step} of {self.max_steps}" if self.step else "before the first step"
        return f"Stopped by {self.reason}, {where}."

    def as_json(self) -> dict[str, Any]:
        """Returns what stopped.json holds."""
        at = datetime.now(UTC).isoformat(timespec="seconds")
        return {"schema_version": 1, "reason": self.reason, "step": self.step, "max_steps": self.max_steps, "at": at}


@dataclass(slots=True)
class Deadline:
    """When the run must have left, and how long leaving takes, by what was measured so far.

    Attributes:
        end: Seconds since the epoch; None is never.
        reason: What sets the end.
        save_seconds: Longest save; a minute is assumed until there was one.
        step_seconds: Longest time from step to step, evaluations included.
    """

    end: float | None = None
    reason: int = 0
    save_seconds: float = 60.0
    step_seconds: float = 0.0
    _saved: bool = False
    _last_step: float | None = None

    @classmethod
    def of(cls, max_hours: float | None) -> Deadline:
        """Returns the earlier of `train.max_hours` after this process's start and the end of the batch job."""
        ends = []
        if max_hours is not None:
            ends.append((psutil.Process().create_time() + 3600 * max_hours, REASONS.index("train.max_hours")))
        if (job_end := os.environ.get(_JOB_END, "")).isdecimal():
            ends.append((float(job_end), REASONS.index("the job's time limit")))
        return cls(*min(ends)) if ends else cls()

    def step_ended(self) -> None:
        """Measures the time since the step before."""
        now = time.monotonic()
        if self._last_step is not None:
            self.step_seconds = max(self.step_seconds, now - self._last_step)
        self._last_step = now

    def saved(self, seconds: float) -> None:
        """Takes note of how long a save took."""
        self.save_seconds = max(self.save_seconds, seconds) if self._saved else seconds
        self._saved = True

    def is_near(self) -> bool:
        """Returns whether another step would leave too little time: it, half as much again, and two saves."""
        return self.end is not None and time.time() + 1.5 * self.step_seconds + 2 * self.save_seconds >= self.end


class StopRequests:
    """Collects what asks this process to leave, from signals, a file and the clock; a context manager.

    Inside of the training loop a request waits until the loop asks for it. Outside of it there is nothing to save, so a
    request ends the process at once, by `Stopped`. There SIGTERM, where several processes work together, just kills:
    their launcher sends it when one of them has died, and another may be in native code that waits for that one.

    Args:
        file: The stop file; whoever creates it asks for a stop. None where there is no folder to put it in.
        deadline: The clock, which is asked in the loop alone.
    """

    def __init__(self, file: Path | None, deadline: Deadline | None = None) -> None:
        self.deadline = deadline or Deadline()
        self._file = file
        self._asked = 0
        self._deferred = self._leaving = self._alone = False
        self._raised: BaseException | None = None
        self._made: tuple[int, int] | None = None
        self._over = threading.Event()
        self._ending = threading.Lock()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequests:
        """Takes the signals over, and looks for the file from now on."""
        if self._file is not None:
            if is_main_process() and EXIT_CODE_FILE not in os.environ:  # `lora-dpo dpo` has removed an old file itself
                _forget_if_old(self._file)
            threading.Thread(target=self._watch, args=(self._file,), name="stop-file", daemon=True).start()
        for number in _BY_SIGNAL:
            self._before[number] = signal.signal(number, self._on_signal)
        self._leave_sigterm_to_the_system()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Removes the stop file where it was heeded, gives the signals back, and raises what became another error."""
        with self._ending:  # a signal of the watching thread comes now or never
            self._over.set()
        cause = self.cause_of(error)
        if isinstance(cause, Stopped) and self._file is not None and self._file.exists():
            if self._alone and _together():  # the others have to see it too, before they miss this process
                time.sleep(2 * _LOOKS_EACH_SECONDS)
            if is_main_process():
                self._file.unlink(missing_ok=True)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if cause is not None and cause is not error:
            raise cause

    def cause_of(self, error: BaseException | None) -> BaseException | None:
        """Returns what a signal has raised where that has become another error on its way, or the error.

        What is raised within a call of torch or safetensors may come out of it as a `ValueError` of theirs.
        """
        return self._raised if self._raised is not None and isinstance(error, Exception) else error

    @contextmanager
    def in_the_loop(self) -> Iterator[None]:
        """Lets requests wait until the loop asks; one that came too late for that is still there after it."""
        self._deferred = True
        signal.signal(signal.SIGTERM, self._on_signal)
        try:
            yield
        finally:
            self._deferred = False
            self._leave_sigterm_to_the_system()

    def asked(self) -> int:
        """Returns the place in `REASONS` of what somebody has asked by, 0 for nothing."""
        if self._asked:
            return self._asked
        # One process asks the shared filesystem at each step, not all of them.
        return _FILE if is_main_process() and self._file is not None and self._file.exists() else 0

    def due(self) -> int:
        """Returns the same, the clock included."""
        return self.asked() or (self.deadline.reason if self.deadline.is_near() else 0)

    def reason(self, place: int) -> str:
        """Returns the words for a place in `REASONS`; a stop file may hold better ones."""
        if place == _FILE and self._file is not None and self._file.is_file():
            return self._file.read_text(encoding="utf-8", errors="replace").strip() or REASONS[_FILE]
        return REASONS[place]

    def steps_made(self, step: int, max_steps: int) -> None:
        """Takes note of how far the training has come when its loop ends."""
        self._made = step, max_steps

    def stopped(self, place: int) -> Stopped:
        """Returns what to raise when all processes leave for one reason; from now on nothing disturbs that."""
        self._leaving = True
        return Stopped(self.reason(place), *(self._made or ()))

    def _leave_sigterm_to_the_system(self) -> None:
        if _together():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._leaving:
            return
        if number == signal.SIGINT and not self._deferred:
            self._raised = KeyboardInterrupt()
            raise self._raised
        self._asked = self._asked or _BY_SIGNAL[signal.Signals(number)]
        if not self._deferred:
            self._alone = True
            self._raised = self.stopped(self._asked)
            raise self._raised

    def _watch(self, file: Path) -> None:
        while not self._over.wait(_LOOKS_EACH_SECONDS):
            if not (self._deferred or self._leaving) and file.exists():
                with self._ending:
                    if not self._over.is_set():
                        self._asked = self._asked or _FILE
                        os.kill(os.getpid(), signal.SIGUSR1)  # an exception can only be raised in the main thread
                return


def _together() -> bool:
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def _forget_if_old(file: Path) -> None:
    """Removes a stop file that is older than this process: it was meant for another one."""
    if file.exists() and file.stat().st_mtime < psutil.Process().create_time():
        file.unlink(missing_ok=True)
