"""Runs a launch, passes on what asks it to stop, and returns the exit code of what was launched itself."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from lora_dpo.cluster.launch import Launch
from lora_dpo.cluster.output import Output
from lora_dpo.console import EXIT_CODE_FILE, STOP_FILE, STOPPED_EXIT_CODE, Failure, failures_told, note, show_error
from lora_dpo.files import write_text, write_whole
from lora_dpo.recipe.run_folder import RunFolder

_SIGNALS = {
    signal.SIGINT: "Ctrl-C",
    signal.SIGTERM: "SIGTERM",
    signal.SIGUSR1: "SIGUSR1",
    signal.SIGHUP: "SIGHUP",
}


def run_launch(launch: Launch, run: RunFolder | None) -> int:
    """Runs the command to its end, and says how it ended where nothing else does.

    A launcher answers a signal by ending its processes within seconds, whatever they are doing. So it gets none: it
    runs in a session of its own, and the first signal becomes a stop file, which the training looks for after each
    step. A second one, or one before there is a run folder, and so nothing to save, ends the processes at once; so does
    the first where nothing looks for the file.

    Args:
        launch: The command.
        run: The run folder that it writes; None where it writes none.

    Returns:
        The command's own exit code, which it leaves in a file: `accelerate launch` turns every failure into 1. 85 if
        it was stopped before there was anything to save; 128 and the signal's number if it was killed by one.
    """
    if run is not None:
        run.stop_file.unlink(missing_ok=True)  # it was meant for an earlier process
    with tempfile.TemporaryDirectory(prefix="lora-dpo-") as folder:
        code_file, stop_file = Path(folder) / "exit_code", Path(folder) / "stop"
        environment = {**os.environ, **launch.environment, EXIT_CODE_FILE: str(code_file)}
        if run is None:
            environment[STOP_FILE] = str(stop_file)
        asked = _Signals(launch, code_file, run, stop_file)
        with asked.passed_on():
            process = subprocess.Popen(launch.command, env=environment, start_new_session=True)
            if asked.killed_by is not None:  # it came before there was anything to kill
                _kill(_started_with(code_file))
            code = process.wait()
            while left := _started_with(code_file):  # what a launcher that was killed has left behind
                if asked.killed_by is not None:  # the launcher may have started them since
                    _kill(left)
                psutil.wait_procs(left, timeout=1)
        words = code_file.read_text(encoding="utf-8") if code_file.is_file() else ""
    told, _, message = words.partition("\n")
    if asked.killed_by is not None:
        return asked.said_how_it_ended()
    if told.isdecimal() and int(told) != 1:
        if message and launch.processes > 1 and int(told) != STOPPED_EXIT_CODE:  # the launcher has said more since
            show_error(message)
        return int(told)
    if code:
        _say_that_it_died(launch, run, with_traceback=bool(told))
    return code if code >= 0 else 128 - code


@dataclass(frozen=True, slots=True)
class NodeEnd:
    """How the processes of one node of a job ended.

    Attributes:
        exit_code: The training's own, as `run_launch` returns it.
        told: What the training says that went wrong.
        failures: What each failing process says of itself.
    """

    exit_code: int
    told: str = ""
    failures: tuple[Failure, ...] = ()


def run_node(launch: Launch, run: RunFolder, output: Output) -> NodeEnd:
    """Runs one node's part of a job to its end.

    As in `run_launch` a signal becomes a stop file. But here the batch script has taken an old one away, and no signal
    ends anything at once: Slurm sends several, and kills by itself when the time is over.

    Args:
        launch: The command.
        run: The run folder that it writes.
        output: What gets all that is printed.
    """
    with tempfile.TemporaryDirectory(prefix="lora-dpo-") as folder:
        code_file = Path(folder) / "exit_code"
        environment = {**os.environ, **launch.environment, EXIT_CODE_FILE: str(code_file), "PYTHONUNBUFFERED": "1"}
        with _stop_file_on_signals(run):
            process = subprocess.Popen(
                launch.command,
                env=environment,
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            output.read_from(process.stdout)
            code = process.wait()
            while left := _started_with(code_file):
                psutil.wait_procs(left, timeout=1)
        output.finish()
        words = code_file.read_text(encoding="utf-8") if code_file.is_file() else ""
        failures = failures_told(code_file)
    told, _, message = words.partition("\n")
    if told.isdecimal() and int(told) != 1:
        return NodeEnd(int(told), message, failures)
    return NodeEnd(code if code >= 0 else 128 - code, message, failures)


@contextlib.contextmanager
def _stop_file_on_signals(run: RunFolder) -> Iterator[None]:
    def ask(number: int, frame: object) -> None:
        if not run.stop_file.exists():  # the batch script may have said it better
            with contextlib.suppress(OSError):
                write_whole(run.stop_file, _SIGNALS[signal.Signals(number)].encode(), shared=True)

    before = {number: signal.signal(number, ask) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Signals:
    """What asked the launch to stop, and what was done about it.

    Attributes:
        killed_by: The signal that ended the processes at once, if one did.
    """

    def __init__(self, launch: Launch, code_file: Path, run: RunFolder | None, stop_file: Path) -> None:
        self.killed_by: signal.Signals | None = None
        self._launch, self._code_file, self._run, self._stop_file = launch, code_file, run, stop_file
        self._asked = False

    @contextlib.contextmanager
    def passed_on(self) -> Iterator[None]:
        """Hears this process's signals while the launch runs."""
        # Under nohup SIGHUP is ignored, and stays so.
        heard = [number for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        before = {number: signal.signal(number, self._pass_on) for number in heard}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def said_how_it_ended(self) -> int:
        """Says what a signal that ended the processes at once has left, and returns the exit code."""
        name = _SIGNALS[self.killed_by]
        if not self._launch.stops_in_order:
            note(f"Ended by {name}. What was measured is kept: the same command goes on from there.")
            return 128 + self.killed_by
        if not self._asked:
            note(f"Stopped by {name}, before there was anything to save.")
            return STOPPED_EXIT_CODE
        note(f"Ended at once by {name}. What was saved before is kept: started again, it goes on from there.")
        return 128 + self.killed_by

    def _pass_on(self, number: int, frame: object) -> None:
        run = self._run
        can_stop = self._launch.stops_in_order and (run is None or (run.is_run and not run.is_complete))
        if can_stop and not self._asked:
            self._asked = True
            write_text(self._stop_file if run is None else run.stop_file, _SIGNALS[signal.Signals(number)])
            when = "keep what it has" if run is None else "save and leave after this step"
            note(f"Asked the training to {when}; a second signal ends it at once.")
            return
        self.killed_by = self.killed_by or signal.Signals(number)
        _kill(_started_with(self._code_file))


def _say_that_it_died(launch: Launch, run: RunFolder | None, *, with_traceback: bool) -> None:
    if launch.processes > 1:
        words = (
            f"A process of the {launch.what} died. The launcher's lines above say which one and how; exitcode -9 is a "
            "kill, as by a machine that ran out of memory."
        )
    elif with_traceback:
        words = f"The {launch.what} died of the error above."
    else:
        words = (
            f"The {launch.what} ended without saying why. If nothing above does, it was killed, as for want of memory."
        )
    if run is not None and run.is_run and not run.is_complete:
        words += " Started again, it goes on from its newest whole checkpoint."
    show_error(words)


def _kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def _started_with(code_file: Path) -> list[psutil.Process]:
    """Returns the launcher and all below it, known by their environment: torchrun gives each training a session."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):  # it has just ended, or is another user's
            if process.environ().get(EXIT_CODE_FILE) == str(code_file) and process.pid != os.getpid():
                found.append(process)
    return found
