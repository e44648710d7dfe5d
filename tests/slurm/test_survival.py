"""What a training on two nodes lives through, to end bit for bit as one that was left alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster
from tests.slurm.runs import ClusterRun

AT_ONCE = 3
"""Scenarios side by side; more of them would only share the same cores."""
STEP = 20
"""The step that a scenario waits for before it does its worst; there are 100."""
SECTIONS = {"train": {"strategy": "ddp", "epochs": 20, "save_steps": 10, "evals_per_epoch": 0, "hang_timeout": "10m"}}
ON_1_2, ON_3_4 = "--nodelist=node1,node2", "--nodelist=node3,node4"
DIES_AT_ONCE = """
import os, signal
if os.environ.get("RANK") == "1":
    os.kill(os.getpid(), signal.SIGKILL)
"""


def undisturbed(run: ClusterRun) -> None:
    run.submit(ON_1_2)
    run.ended()


def time_limit(run: ClusterRun) -> None:
    run.submit(ON_1_2)
    run.at_step(STEP)
    run.cluster.run("scontrol", "update", f"JobId={run.job}", "TimeLimit=5")  # USR1 comes 5 minutes before the end
    run.cluster.wait(run.job, ["PENDING"])
    run.cluster.run("scontrol", "update", f"JobId={run.job}", "TimeLimit=20")
    run.cluster.start_now(run.job)
    run.ended()


def preemption(run: ClusterRun) -> None:
    run.submit(ON_1_2, "--partition=preempt", "--cpus-per-task=5")
    run.at_step(STEP)
    needs = ("--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=5", "--mem=100")  # more than is left beside the run
    other = run.cluster.sbatch(ON_1_2, *needs, "--wrap=sleep 3", "--output=/dev/null", cwd=run.folder)
    run.cluster.wait(run.job, ["PENDING"])
    run.cluster.wait(other)
    run.cluster.start_now(run.job)
    run.ended()


def preemption_without_grace(run: ClusterRun) -> None:
    """Slurm's own requeue comes without a word to the job."""
    run.submit(ON_1_2)
    run.at_step(STEP)
    run.cluster.run("scontrol", "requeue", run.job)
    run.cluster.start_now(run.job)
    run.ended()


def dead_node(run: ClusterRun) -> None:
    run.submit(ON_3_4)
    run.at_step(STEP)
    run.cluster.node_down("node4")
    run.cluster.wait(run.job, ["PENDING"])
    run.cluster.node_up("node4")
    run.cluster.start_now(run.job)
    run.ended()


def cancelled_step(run: ClusterRun) -> None:
    run.submit(ON_1_2)
    run.at_step(STEP)
    run.cluster.run("scancel", f"{run.job}.0")
    run.cluster.wait(run.job, ["PENDING"])
    run.cluster.start_now(run.job)
    run.ended()


def restarted_controller(run: ClusterRun) -> None:
    run.submit(ON_1_2)
    run.at_step(STEP)
    run.cluster.script("restart-controller")
    run.ended()


def full_log_disk(run: ClusterRun) -> None:
    run.submit(ON_1_2, "--hold", "--output=/dev/full")
    logs = run.path / "slurm" / "logs"
    logs.mkdir(parents=True)
    for node in ("node1", "node2"):
        (logs / f"dpo-{run.job}.0.{node}.out").symlink_to("/dev/full")
    run.cluster.run("scontrol", "release", run.job)
    run.ended()


def chain(run: ClusterRun) -> None:
    chained = {"LORA_DPO_REQUEUE": "chain", "LORA_DPO_CHAIN": "one"}
    first = run.submit(ON_1_2, **chained)
    run.submit(ON_1_2, f"--dependency=afterany:{first}", **chained)
    second = run.job
    run.submit(ON_1_2, f"--dependency=afterany:{second}", **chained)
    run.at_step(STEP)
    run.cluster.run("scancel", "--batch", "--signal=USR1", first)
    run.ended()


def three_failures(run: ClusterRun) -> None:
    site = run.folder / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(DIES_AT_ONCE)
    run.submit(ON_1_2, LORA_DPO_CODE=str(site))
    for restart in (1, 2):
        run.cluster.until(lambda restart=restart: len(run.events("ended")) >= restart, f"failure {restart}")
        run.cluster.start_now(run.job)
    run.ended()


def stop_file(run: ClusterRun) -> None:
    run.submit(ON_1_2)
    run.at_step(STEP)
    (run.path / "stop").write_text("lunch")
    run.ended()
    run.submit(ON_1_2)
    run.ended()


def scancel(run: ClusterRun) -> None:
    run.submit(ON_1_2)
    run.at_step(STEP)
    run.cluster.run("scancel", run.job)
    run.ended()
    run.cluster.until(lambda: run.events("ended"), "the end of the cancelled job in the record")


SCENARIOS: tuple[Callable[[ClusterRun], None], ...] = (
    undisturbed, dead_node, time_limit, preemption, preemption_without_grace, cancelled_step, restarted_controller,
    full_log_disk, chain, three_failures, stop_file, scancel,
)  # fmt: skip


@pytest.fixture(scope="module")
def scenarios(cluster: Cluster, tiny_models, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future]]:
    """Plays all scenarios, some side by side, each with a run of its own."""
    folder, model = tmp_path_factory.mktemp("survival"), tiny_models("llama")

    def play(scenario: Callable[[ClusterRun], None]) -> ClusterRun:
        run = ClusterRun(cluster, folder / scenario.__name__, model, **SECTIONS)
        scenario(run)
        return run

    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield {scenario.__name__: pool.submit(play, scenario) for scenario in SCENARIOS}
        pool.shutdown(cancel_futures=True)


@pytest.fixture
def played(scenarios: dict[str, Future]) -> Callable[[Callable], ClusterRun]:
    """Returns a function to the run of a scenario that has been played."""
    return lambda scenario: scenarios[scenario.__name__].result()


STOPPED = 85
ENDS = {
    time_limit: [("time limit", True, STOPPED), ("done", False, 0)],
    preemption: [("preemption", True, STOPPED), ("done", False, 0)],
    dead_node: [("vanished", True, None), ("done", False, 0)],
    cancelled_step: [("failure", True, STOPPED), ("done", False, 0)],
    restarted_controller: [("done", False, 0)],
    chain: [("time limit", False, STOPPED), ("done", False, 0), ("done", False, 0)],
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


def test_preempted_without_grace_it_goes_on_from_its_newest_checkpoint(played):
    run = played(preemption_without_grace)
    assert run.adapter == played(undisturbed).adapter
    (cause, requeued, _), last = run.starts()
    assert cause in ("ended by Slurm", "vanished")  # whether there is time to say so is Slurm's to decide
    assert last == ("done", False, 0)


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
    assert line["step"] > STEP
    assert json.loads((run.path / "stopped.json").read_text())["step"] == line["step"]


def test_the_record_tells_the_nodes_of_each_start(played):
    for line in played(dead_node).events():
        assert line["nodes"] == ["node3", "node4"]
        assert Path(played(dead_node).path).name == "small"
