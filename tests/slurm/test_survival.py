"""What a training on two nodes lives through, to end bit for bit as one that was left alone."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import pytest

from tests.slurm import strikes
from tests.slurm.cluster import Cluster
from tests.slurm.runs import ClusterRun

AT_ONCE = 3
"""Scenarios side by side; more of them would only share the same cores."""
STEP = 10
"""The step that a scenario waits for before it does its worst; there are 120."""
SECTIONS = {"train": {"strategy": "ddp", "epochs": 24, "save_steps": 5, "evals_per_epoch": 0, "hang_timeout": "10m"}}
DIES_AT_ONCE = """
import os, signal
if os.environ.get("RANK") == "1":
    os.kill(os.getpid(), signal.SIGKILL)
"""


def undisturbed(run: ClusterRun) -> None:
    run.submit()
    run.ended()


def struck(run: ClusterRun, strike: Callable[[ClusterRun], None], *flags: str) -> None:
    run.submit(*flags)
    run.at_step(STEP)
    strike(run)
    run.ended()


def warned(run: ClusterRun) -> None:
    struck(run, strikes.warn)


def time_limit(run: ClusterRun) -> None:
    """Slurm looks at time limits twice a minute, so this run has no end of its own."""
    run.submit(words=("train.epochs=10000",))
    run.at_step(STEP)
    hours, minutes, _ = run.cluster.job(run.job)["RunTime"].split(":")
    limit = 60 * int(hours) + int(minutes) + 5  # the warning comes 5 minutes before it
    run.cluster.run("scontrol", "update", f"JobId={run.job}", f"TimeLimit={limit}")
    run.cluster.wait(run.job, ["PENDING"])
    run.cluster.run("scancel", run.job)


def preemption(run: ClusterRun) -> None:
    struck(run, strikes.preempt, *strikes.PREEMPTABLE)


def requeued_by_slurm(run: ClusterRun) -> None:
    struck(run, strikes.requeue)


def dead_node(run: ClusterRun) -> None:
    run.nodes = "node3,node4"  # which no other scenario is on
    struck(run, strikes.crash_node)


def cancelled_step(run: ClusterRun) -> None:
    struck(run, strikes.cancel_step)


def killed_rank(run: ClusterRun) -> None:
    struck(run, strikes.kill_rank)


def restarted_controller(run: ClusterRun) -> None:
    struck(run, lambda run: run.cluster.script("restart-controller"))


def full_log_disk(run: ClusterRun) -> None:
    run.submit("--hold", "--output=/dev/full")
    logs = run.path / "slurm" / "logs"
    logs.mkdir(parents=True)
    for node in ("node1", "node2"):
        (logs / f"dpo-{run.job}.0.{node}.out").symlink_to("/dev/full")
    run.cluster.run("scontrol", "release", run.job)
    run.ended()


def chain(run: ClusterRun) -> None:
    first_of_chain(run, "--batch", "--signal=USR1")  # as in `warned`


def killed_chain(run: ClusterRun) -> None:
    first_of_chain(run)


def first_of_chain(run: ClusterRun, *flags: str) -> None:
    """Ends the first job of a chain of three by scancel with these flags."""
    chained = {"LORA_DPO_REQUEUE": "chain", "LORA_DPO_CHAIN": "one"}
    first = run.submit(**chained)
    for _ in range(2):
        run.submit(f"--dependency=afterany:{run.job}", **chained)
    run.at_step(STEP)
    run.cluster.run("scancel", *flags, first)
    run.ended()


def three_failures(run: ClusterRun) -> None:
    site = run.folder / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(DIES_AT_ONCE)
    run.submit(LORA_DPO_CODE=str(site))
    strikes.start_again(run)


def stop_file(run: ClusterRun) -> None:
    run.submit()
    run.at_step(STEP)
    (run.path / "stop").write_text("lunch")
    run.ended()
    run.submit()
    run.ended()


def scancel(run: ClusterRun) -> None:
    run.submit()
    run.at_step(STEP)
    run.cluster.run("scancel", run.job)
    run.ended()
    run.cluster.until(lambda: run.events("ended"), "the end of the cancelled job in the record")


SCENARIOS: tuple[Callable[[ClusterRun], None], ...] = (
    undisturbed, dead_node, warned, time_limit, preemption, requeued_by_slurm, cancelled_step, killed_rank,
    restarted_controller, full_log_disk, chain, killed_chain, three_failures, stop_file, scancel,
)  # fmt: skip


@pytest.fixture(scope="module")
def scenarios(cluster: Cluster, tiny_models, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future]]:
    """Plays all scenarios, some side by side, each with a run of its own."""
    cluster = replace(cluster, over=threading.Event())
    folder, model = tmp_path_factory.mktemp("survival"), tiny_models("llama")

    def play(scenario: Callable[[ClusterRun], None]) -> ClusterRun:
        run = ClusterRun(cluster, folder / scenario.__name__, model, **SECTIONS)
        scenario(run)
        return run

    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield {scenario.__name__: pool.submit(play, scenario) for scenario in SCENARIOS}
        cluster.over.set()
        pool.shutdown(wait=False, cancel_futures=True)
        cluster.run("scancel", "--user=root")


@pytest.fixture
def played(scenarios: dict[str, Future]) -> Callable[[Callable], ClusterRun]:
    """Returns a function to the run of a scenario that has been played."""
    return lambda scenario: scenarios[scenario.__name__].result()


STOPPED = 85
ENDS = {
    warned: [("time limit", True, STOPPED), ("done", False, 0)],
    preemption: [("preemption", True, STOPPED), ("done", False, 0)],
    cancelled_step: [("failure", True, 137), ("done", False, 0)],
    killed_rank: [("failure", True, 1), ("done", False, 0)],
    restarted_controller: [("done", False, 0)],
    chain: [("time limit", False, STOPPED), ("done", False, 0), ("done", False, 0)],
    killed_chain: [("ended by Slurm", False, STOPPED), ("done", False, 0), ("done", False, 0)],
    stop_file: [("asked", False, STOPPED), ("done", False, 0)],
}


@pytest.mark.parametrize("scenario", ENDS, ids=lambda scenario: scenario.__name__)
def test_it_ends_as_one_that_was_left_alone(played, scenario: Callable):
    run = played(scenario)
    assert run.adapter == played(undisturbed).adapter
    assert run.starts() == ENDS[scenario]
    assert run.ended()["JobState"] == "COMPLETED"
    for before, after in zip(run.events("ended"), run.events("started")[1:], strict=False):
        assert after["from_step"] == before["step"] >= STEP


@pytest.mark.parametrize("scenario", [requeued_by_slurm, dead_node], ids=lambda scenario: scenario.__name__)
def test_ended_without_grace_it_goes_on_from_what_it_had_saved(played, scenario: Callable):
    run = played(scenario)
    assert run.adapter == played(undisturbed).adapter
    (cause, _, _), last = run.starts()
    assert cause in ("ended by Slurm", "vanished")  # whether there is time to say so is Slurm's to decide
    assert last == ("done", False, 0)
    assert run.events("started")[-1]["from_step"] >= STEP


def test_the_time_limit_is_seen_coming(played):
    (line,) = played(time_limit).events("ended")
    assert (line["cause"], line["requeued"], line["exit_code"]) == ("time limit", True, STOPPED)
    assert line["reason"] == "Stopped by the job's time limit, in order."
    assert line["step"] == max(played(time_limit).checkpoints()) >= STEP


def test_a_full_log_disk_is_no_reason_to_die(played):
    run = played(full_log_disk)
    assert run.adapter == played(undisturbed).adapter
    assert run.starts() == [("done", False, 0)]


def test_three_failures_in_a_row_are_given_up_with_the_reason(played):
    run = played(three_failures)
    job = run.ended()
    assert (job["JobState"], job["ExitCode"], job["Restarts"]) == ("FAILED", "1:0", "2")
    assert [(line["cause"], line["requeued"]) for line in run.events("ended")] == [
        ("failure", True), ("failure", True), ("failure", False),
    ]  # fmt: skip
    reason = run.events("ended")[-1]["reason"]
    assert reason.startswith("Rank 1 on node2 failed first: it was killed by signal 9")
    assert "3 starts in a row ended so before they had saved anything new: it is given up." in reason
    assert f"The job ends: {reason}" in run.output
    assert "The last lines of node2:" in run.output


def test_a_cancelled_job_saves_and_stays_ended(played):
    run = played(scancel)
    assert run.ended()["JobState"] == "CANCELLED"
    (line,) = run.events("ended")
    assert (line["cause"], line["requeued"]) == ("ended by Slurm", False)
    assert line["step"] >= STEP
    assert json.loads((run.path / "stopped.json").read_text())["step"] == line["step"]


def test_the_record_tells_the_nodes_and_what_was_first(played):
    assert all(line["nodes"] == ["node3", "node4"] for line in played(dead_node).events())
    (failed, _) = played(killed_rank).events("ended")
    assert failed["reason"].startswith("Rank 1 on node2 failed first: it was killed by signal 9")
