"""What befalls jobs on a cluster; each waits until the job has come to its end all the same."""

from __future__ import annotations

import contextlib
import signal
from datetime import datetime, timedelta

import psutil

from tests.slurm.cluster import ENDED
from tests.slurm.runs import ClusterRun

PREEMPTABLE = ("--partition=preempt", "--cpus-per-task=5")
"""Flags of a job that another one will preempt: there is no room for both."""


def preempt(run: ClusterRun) -> None:
    """Submits a job that needs the run's nodes and goes before it; there is half a minute of grace."""
    needs = (f"--nodelist={run.nodes}", f"--nodes={run.nodes.count(',') + 1}", "--cpus-per-task=5", "--mem=100")
    other = run.cluster.sbatch(*needs, "--wrap=sleep 3", "--output=/dev/null", cwd=run.folder)
    run.cluster.wait(other)
    start_again(run)


def requeue(run: ClusterRun) -> None:
    """Lets Slurm requeue the job, as by a preemption without grace: it is killed without being asked."""
    run.cluster.run("scontrol", "requeue", run.job)
    start_again(run)


def crash_node(run: ClusterRun) -> None:
    """Pulls the plug of the last node; Slurm finds out, and requeues the job."""
    node = run.nodes.split(",")[-1]
    run.cluster.node_down(node)
    run.cluster.wait(run.job, ["PENDING"])
    run.cluster.run("scontrol", "hold", run.job)
    run.cluster.node_up(node)
    # Slurm repeats after a minute what the node could not hear: to end the job. That must not hit the next start.
    run.cluster.run("scontrol", "update", f"JobId={run.job}", "StartTime=now+75")
    run.cluster.run("scontrol", "release", run.job)
    run.cluster.wait(run.job, ["RUNNING"])
    start_again(run)


def cancel_step(run: ClusterRun) -> None:
    """Ends what srun has started, but not the batch script."""
    run.cluster.run("scancel", f"{run.job}.0")
    start_again(run)


def warn(run: ClusterRun) -> None:
    """Sends what Slurm sends some minutes before the time limit, at this moment instead of its own."""
    run.cluster.run("scancel", "--batch", "--signal=USR1", run.job)
    start_again(run)


def kill_rank(run: ClusterRun, rank: int = 1) -> None:
    """Kills one process of the training, as a machine without memory does."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            environment = process.environ()
            # Another cluster's jobs have the same numbers.
            if environment.get("SLURM_SUBMIT_DIR") == str(run.folder) and environment.get("RANK") == str(rank):
                process.send_signal(signal.SIGKILL)
    start_again(run)


def start_again(run: ClusterRun) -> None:
    """Spares the job the two minutes that Slurm lets a requeued one wait, as often as it is requeued until it ends."""
    run.cluster.until(lambda: _waits_or_ended(run), f"the end of {run.folder}")


def _waits_or_ended(run: ClusterRun) -> bool:
    state, starts = run.cluster.state(run.job), run.cluster.job(run.job)["StartTime"]
    soon = (datetime.now() + timedelta(seconds=30)).isoformat()
    if state == "PENDING" and starts != "Unknown" and starts > soon:
        # Not at once: in the second in which a node ends a job, it refuses to start it ("credential revoked").
        run.cluster.run("scontrol", "update", f"JobId={run.job}", "StartTime=now+10")
    return state in ENDED
