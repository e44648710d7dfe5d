"""Starting this project's commands as a user does: as processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
_STRUCK = """
import glob, os, sys, threading, time
from pathlib import Path

pattern, lines, blow = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
sys.argv[1:4] = []

def strike():
    found = []
    while not found or sum(Path(file).read_bytes().count(b"\\n") for file in found) < lines:
        time.sleep(0.001)
        found = glob.glob(pattern, include_hidden=True)
    os.kill(os.getpid(), blow)

threading.Thread(target=strike, daemon=True).start()
from lora_dpo.cli import main
main()
"""
ROOT = Path(__file__).parent.parent
PATIENCE = 1800.0
"""Seconds after which what has not come will not come any more, however busy the machine is."""


def wait_until(condition: Callable[[], T], seconds_between_looks: float = 0.05) -> T:
    """Waits until something is true, and returns it."""
    end = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(seconds_between_looks)
    return found


def run_python(*arguments: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs Python with this checkout on its path, and returns its exit code and output.

    Args:
        arguments: Words after `python`.
        cwd: Working directory.
        environment: Variables that are set besides the test's own.
    """
    env = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120", "TERM": "dumb", **environment}
    return subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=cwd, env=env, capture_output=True, text=True, timeout=PATIENCE
    )


def struck(
    blow: signal.Signals, pattern: str, *words: str | Path, lines: int = 0, cwd: Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs the command `lora-dpo`, which strikes itself: from outside a busy machine may do so when all is over.

    Args:
        blow: The signal.
        pattern: Files; as soon as there is one, and these have so many lines, the signal comes.
        words: Words after `lora-dpo`.
        lines: How many lines.
        cwd: Working directory.
        environment: Variables that are set besides the test's own.
    """
    return run_python("-c", _STRUCK, pattern, str(lines), str(int(blow)), *words, cwd=cwd, **environment)


def lora_dpo(*arguments: str | Path, cwd: Path, **options) -> subprocess.CompletedProcess[str]:
    """Runs the command `lora-dpo`."""
    return run_python("-m", "lora_dpo", *arguments, cwd=cwd, **options)
