"""Strikes a small run with a fault, starts it again as a user or a batch system would, and compares how it ends."""

from __future__ import annotations

import json
import os
import random
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.distributed.runs import SAVE_STEPS, Mode, SmallRun, kill_all

_STARTS_AT_MOST = 4
_RUN_BYTES = 64 * 2**20


@dataclass(slots=True)
class Round:
    """What came of one fault.

    Attributes:
        fault: Its name.
        mode: The mode's name.
        struck: Whether it really struck: the first start did not come to its end.
        survived: Whether the run came to its end after it.
        identical: Whether it then was what an undisturbed one is.
        steps_lost: Steps that had been made and were made again.
        starts: Times it was started.
        said: What all starts wrote.
    """

    fault: str
    mode: str
    struck: bool = False
    survived: bool = False
    identical: bool = False
    steps_lost: int = 0
    starts: int = 0
    said: str = field(default="", repr=False)


Strike = Callable[[SmallRun, Mode, random.Random], subprocess.CompletedProcess[str]]


def run_round(
    name: str, mode_name: str, mode: Mode, run: SmallRun, expected: dict[str, Any], chance: random.Random
) -> Round:
    """Strikes once, then starts the run again until it ends.

    Args:
        name: The fault, a key of `FAULTS`.
        mode_name: The mode's name.
        mode: The mode.
        run: A run that has not been started.
        expected: The outcome of an undisturbed run of this mode.
        chance: Draws the moment.
    """
    result = Round(name, mode_name)
    with _its_own_filesystem(run) if name == "disk full" else nullcontext():
        struck = FAULTS[name](run, mode, chance)
        result.starts, result.said = 1, struck.stderr
        result.struck = struck.returncode != 0 or not (run.path / "report.json").exists()
        while not (run.path / "report.json").exists() and result.starts < _STARTS_AT_MOST:
            before = last_step(run)
            done = run.start(mode)
            result.starts += 1
            result.said += done.stderr
            result.steps_lost += max(0, before - resumed_after(done.stderr))
        result.survived = (run.path / "report.json").exists()
        result.identical = result.survived and run.outcome() == expected
    return result


def last_step(run: SmallRun) -> int:
    """Returns the last step in the run's metrics, which a new start takes back to its checkpoint."""
    file = run.path / "metrics.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0


def resumed_after(said: str) -> int:
    """Returns the step after which a start says that it goes on; 0 where it began."""
    words = " ".join(said.split())
    return int(words.partition(", after step ")[2].split()[0]) if "Going on from" in words else 0


# The faults


def _in_process(**fault: Any) -> Strike:
    def strike(run: SmallRun, mode: Mode, chance: random.Random) -> subprocess.CompletedProcess[str]:
        drawn = {"number": chance.randrange(1, 14), "ranks": [chance.randrange(mode.world)]}
        return run.start(mode, fault={**drawn, **fault})

    return strike


def _in_a_save(kind: str) -> Strike:
    def strike(run: SmallRun, mode: Mode, chance: random.Random) -> subprocess.CompletedProcess[str]:
        at, ranks = chance.choice([("save", [chance.randrange(mode.world)]), ("commit", [0])])
        fault = {"kind": kind, "at": at, "number": SAVE_STEPS * chance.randrange(1, 5), "ranks": ranks}
        return run.start(mode, fault=fault)

    return strike


def _kill_all(run: SmallRun, mode: Mode, chance: random.Random) -> subprocess.CompletedProcess[str]:
    """Kills the launcher and every process below it at some moment, the start included."""
    process = run.spawn(mode)
    metrics, lines, patience = run.path / "metrics.jsonl", chance.randrange(9), time.monotonic() + 120
    while process.poll() is None and time.monotonic() < patience:
        if run.path.exists() and (lines == 0 or (metrics.exists() and metrics.read_text().count("\n") >= lines)):
            break
        time.sleep(0.001)
    kill_all(process.pid)
    out, err = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def _damage(action: Callable[[Path, random.Random], None]) -> Strike:
    """Kills a process, then damages a file of the newest checkpoint, as a failing disk or a careless user does."""

    def strike(run: SmallRun, mode: Mode, chance: random.Random) -> subprocess.CompletedProcess[str]:
        fault = {"kind": "kill", "at": "step", "number": chance.randrange(7, 14), "ranks": [0]}
        struck = run.start(mode, fault=fault)
        newest = run.path / "checkpoints" / f"step-{run.checkpoints()[-1]}"
        files = sorted(file for file in newest.rglob("*") if file.is_file() and file.stat().st_size)
        action(chance.choice(files), chance)
        return struck

    return strike


def _truncate(file: Path, chance: random.Random) -> None:
    os.truncate(file, chance.randrange(file.stat().st_size))


def _flip(file: Path, chance: random.Random) -> None:
    content = bytearray(file.read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    file.write_bytes(content)


def _disk_full(run: SmallRun, mode: Mode, chance: random.Random) -> subprocess.CompletedProcess[str]:
    ballast = run.path.parent / "ballast"
    fault = {"kind": f"fill {ballast}", "at": "before save", "number": SAVE_STEPS * chance.randrange(1, 5)}
    struck = run.start(mode, fault=fault)
    ballast.unlink()
    return struck


def _stop_file(run: SmallRun, mode: Mode, chance: random.Random) -> subprocess.CompletedProcess[str]:
    fault = {"kind": f"touch {run.path / 'stop'}", "at": "step", "number": chance.randrange(1, 14), "ranks": [0]}
    return run.start(mode, fault=fault)


def _hang(run: SmallRun, mode: Mode, chance: random.Random) -> subprocess.CompletedProcess[str]:
    fault = {"kind": "hang", "at": "step", "number": chance.randrange(1, 14), "ranks": [chance.randrange(mode.world)]}
    return run.start(mode, "train.hang_timeout=20s", fault=fault)


FAULTS: dict[str, Strike] = {
    "kill -9 of one process": _in_process(kind="kill", at="step"),
    "kill -9 of all": _kill_all,
    "kill -9 in a save": _in_a_save("kill"),
    "kill -9 in the reference pass": _in_process(kind="kill", at="reference", number=1),
    "kill -9 in the data": _in_process(kind="kill", at="data"),
    "kill -9 in the report": _in_process(kind="kill", at="report"),
    "truncated file": _damage(_truncate),
    "flipped bit": _damage(_flip),
    "missing file": _damage(lambda file, chance: file.unlink()),
    "disk full": _disk_full,
    "hang": _hang,
    "NaN loss": _in_process(kind="nan", at="step"),
    "SIGTERM": _in_process(kind="term", at="step"),
    "SIGUSR1": _in_process(kind="usr1", at="step"),
    "SIGUSR1 in the reference pass": _in_process(kind="usr1", at="reference", number=1),
    "SIGTERM in a save": _in_a_save("term"),
    "stop file": _stop_file,
}


@contextmanager
def _its_own_filesystem(run: SmallRun) -> Iterator[None]:
    """Puts the run on a small filesystem; needs the right to mount one."""
    folder = run.path.parent
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={_RUN_BYTES}", "tmpfs", str(folder)]
    subprocess.run(mount, check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True, capture_output=True)
