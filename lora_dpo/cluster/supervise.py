"""Runs a launch, passes on what asks it to stop, and returns the exit code of the training itself."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil

from lora_dpo.cluster.launch import Launch
from lora_dpo.console import EXIT_CODE_FILE, note
from lora_dpo.recipe.run_folder import RunFolder, write_text

_SIGNALS = {
    signal.SIGINT: "Ctrl-C",
    signal.SIGTERM: "SIGTERM",
    signal.SIGUSR1: "SIGUSR1",
    signal.SIGHUP: "SIGHUP",
}


def run_launch(launch: Launch, run: RunFolder | None) -> int:
    """Runs the command to its end.

    A launcher answers a signal by ending its processes within seconds, whatever they are doing. So it gets none: it
    runs in a session of its own, and the first signal becomes the run's stop file, which the training looks for after
    each step. A second one, or one before there is a run folder, ends the processes at once.

    Args:
        launch: The command.
        run: The run folder that it writes; None where it writes none.

    Returns:
        The training's own exit code, which it leaves in a file: `accelerate launch` turns every failure into 1.
    """
    if run is not None:
        run.stop_file.unlink(missing_ok=True)  # it was meant for an earlier process
    with tempfile.TemporaryDirectory(prefix="lora-dpo-") as folder:
        code_file = Path(folder) / "exit_code"
        environment = {**os.environ, EXIT_CODE_FILE: str(code_file)}
        process = subprocess.Popen(launch.command, env=environment, start_new_session=True)
        with _signals_passed_on(code_file, run):
            code = process.wait()
            psutil.wait_procs(_started_with(code_file))  # what a launcher that was killed has left behind
        own_code = code_file.read_text(encoding="ascii") if code_file.is_file() else ""
        return int(own_code) if own_code.isdigit() else code


@contextlib.contextmanager
def _signals_passed_on(code_file: Path, run: RunFolder | None) -> Iterator[None]:
    signals_seen = 0

    def pass_on(number: int, frame: object) -> None:
        nonlocal signals_seen
        signals_seen += 1
        if signals_seen == 1 and run is not None and run.is_run and not run.is_complete:
            write_text(run.stop_file, _SIGNALS[signal.Signals(number)])
            note("Asked the training to save and leave after this step; a second signal ends it at once.")
            return
        for process in _started_with(code_file):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate() if signals_seen == 1 else process.kill()

    # Under nohup SIGHUP is ignored, and stays so.
    heard = [number for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, pass_on) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _started_with(code_file: Path) -> list[psutil.Process]:
    """Returns the launcher and all below it, known by their environment: torchrun gives each training a session."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):  # it has just ended, or is another user's
            if process.environ().get(EXIT_CODE_FILE) == str(code_file) and process.pid != os.getpid():
                found.append(process)
    return found
