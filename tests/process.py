"""Starting this project's commands as a user does: as processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
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


def lora_dpo(*arguments: str | Path, cwd: Path, **options) -> subprocess.CompletedProcess[str]:
    """Runs the command `lora-dpo`."""
    return run_python("-m", "lora_dpo", *arguments, cwd=cwd, **options)
