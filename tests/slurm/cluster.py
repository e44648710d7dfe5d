"""The emulated cluster of `cluster.sh`, and a user's hands on it: sbatch, scontrol, and pulling a node's plug."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.process import PATIENCE, ROOT

SCRIPT = ROOT / "tests" / "slurm" / "cluster.sh"
ENDED = frozenset(
    {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE"}
)
_LOOKS_EACH_SECONDS = 0.3
_REQUEUES_WITHIN_SECONDS = 3
_TRIES = 30
_NO_CONTROLLER = "Unable to contact slurm controller|Socket timed out|Connection refused"


@dataclass(frozen=True, slots=True)
class Cluster:
    """A running cluster.

    Attributes:
        environment: What a process needs besides the test's own environment to talk to it.
        over: Ends all waiting, in whatever thread.
    """

    environment: dict[str, str] = field(default_factory=dict)
    over: threading.Event = field(default_factory=threading.Event)

    def run(self, *command: str | Path, cwd: Path = ROOT, check: bool = True, **environment: str) -> str:
        """Runs a command on the login node, and returns what it printed; its errors are in the failure."""
        words, env = [str(word) for word in command], {**os.environ, **self.environment, **environment}
        for _ in range(_TRIES):
            done = subprocess.run(
                words, cwd=cwd, env=env, capture_output=True, text=True, timeout=PATIENCE, check=False
            )
            if done.returncode == 0 or not re.search(_NO_CONTROLLER, done.stderr):
                break
            time.sleep(1)  # another test is just restarting it
        assert not check or done.returncode == 0, f"{shlex.join(map(str, command))}\n{done.stdout}\n{done.stderr}"
        return done.stdout.strip()

    def sbatch(self, *words: str | Path, cwd: Path, **environment: str) -> str:
        """Submits a job, whose `python` is the one that runs the tests, and returns its number."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return self.run("sbatch", "--parsable", *words, cwd=cwd, **{"PATH": path, **environment}).partition(";")[0]

    def job(self, job: str) -> dict[str, str]:
        """Returns what `scontrol show job` says of a job (of an array, the first task that it lists)."""
        text = self.run("scontrol", "show", "job", job).split("\n\n")[0]
        return dict(re.findall(r"^\s*(\w+)=(.*)$", re.sub(r" (?=[A-Z][\w:/]*=)", "\n", text), re.M))

    def state(self, job: str) -> str:
        """Returns a job's state; one that is being requeued may look for a moment as if it had ended."""
        state = self.job(job)["JobState"]
        if state in ENDED:
            time.sleep(_REQUEUES_WITHIN_SECONDS)
            state = self.job(job)["JobState"]
        return state

    def wait(self, job: str, states: Iterable[str] = ENDED) -> dict[str, str]:
        """Waits until a job is in one of the states, or has ended in another one, and returns what it is then."""
        awaited = {*states, *ENDED}
        self.until(lambda: self.state(job) in awaited, f"job {job} in {sorted(awaited)}")
        found = self.job(job)
        for _ in range(30):  # a job that is requeued may look ended
            if found["JobState"] in set(states):
                break
            time.sleep(1)
            found = self.job(job)
        assert found["JobState"] in set(states), f"job {job} has ended: {found['JobState']} {found['ExitCode']}"
        return found

    def until(self, holds: Callable[[], object], what: str) -> None:
        """Waits until something holds."""
        end = time.monotonic() + PATIENCE
        while not holds():
            assert not self.over.is_set(), f"the tests are over before {what}"
            assert time.monotonic() < end, f"not within {PATIENCE:g} seconds: {what}\n{self.run('squeue', '--all')}"
            time.sleep(_LOOKS_EACH_SECONDS)

    def script(self, *words: str) -> None:
        """Calls `cluster.sh`."""
        self.run(SCRIPT, *words)

    def node_down(self, node: str) -> None:
        """Lets a node crash."""
        self.script("node-down", node)

    def node_up(self, node: str) -> None:
        """Brings a crashed node back, and waits until it takes jobs."""
        self.script("node-up", node)
        state = ("sinfo", "-h", "-N", "-n", node, "-o", "%T")
        self.until(lambda: self.run(*state).split()[:1] == ["idle"], f"{node} idle")


@contextmanager
def started(*shared: Path) -> Iterator[Cluster]:
    """Brings a cluster of four nodes up, node1 to node4, and down again.

    Its nodes have no way out of the cluster, and a /tmp of their own, of which they share only this checkout and the
    folders given. One that was there already, started by hand with the same settings, stays.

    Args:
        shared: Folders for jobs to work in.
    """
    below_tmp = [str(folder) for folder in (ROOT, *shared) if folder.is_relative_to("/tmp")]
    own = {"LSL_CPUS": "8", "LSL_PRIVATE_TMP": "1", "LSL_SHARED": ":".join(below_tmp)}
    settings = {**own, **os.environ}

    def call(verb: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([SCRIPT, verb], env=settings, capture_output=True, text=True, check=False)

    there = call("status").returncode == 0
    if (start := call("start")).returncode != 0:
        raise RuntimeError(f"The cluster did not start:\n{start.stderr}")
    exports = dict(word.split("=", 1) for word in shlex.split(call("env").stdout) if "=" in word)
    try:
        yield Cluster(exports)
    finally:
        if not there:
            call("stop")
