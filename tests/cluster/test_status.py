"""What `lora-dpo status` makes of Slurm's words, a run's record, and its progress."""

from __future__ import annotations

import io
import json
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from rich.console import Console

from lora_dpo.cluster import status_view
from lora_dpo.cluster.advance import advance_of
from lora_dpo.cluster.finding import find_run
from lora_dpo.cluster.status import RunStatus, status_of
from lora_dpo.cluster.status_view import headline, overview, panel
from lora_dpo.errors import UserError
from lora_dpo.recipe.loading import to_yaml
from lora_dpo.recipe.run_folder import RunFolder
from tests.cluster.conftest import FakeSlurm, record
from tests.small import small_recipe


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A run whose jobs were submitted from the working directory: 101 trains, 102 merges after it."""
    monkeypatch.chdir(tmp_path)
    found = RunFolder(Path("runs/small"))
    found.slurm.mkdir(parents=True)
    recipe = small_recipe("m", Path("runs"), train={"global_batch_size": 4})
    (found.slurm / "recipe.yaml").write_text(to_yaml(recipe))
    jobs = [{"job": "101", "stage": "dpo"}, {"job": "102", "stage": "merge"}]
    (found.slurm / "submission.json").write_text(json.dumps({"jobs": jobs}))
    record(found.path, {"event": "submitted", "job": "101"}, {"event": "submitted", "job": "102", "stage": "merge"})
    return found


def trained(run: RunFolder, step: int) -> None:
    """Leaves what a training of 40 steps does, whose step takes half a second."""
    rates = {"tokens_per_second": 4932.0, "pairs_per_second": 8.0, "max_steps": 40}
    lines = [
        {"step": each, "phase": "train", "loss": 0.7 - each / 100, "rewards/margins": each / 100, **rates}
        for each in range(1, step + 1)
    ]
    text = "".join(f"{json.dumps(line)}\n" for line in lines)
    run.metrics.write_text(f'{text}{{"step": {step}, "phase": "eval", "loss": 9}}\n{{"step": 99, "pha')


def shown(status: RunStatus, now: datetime | None = None) -> str:
    """Returns the panel's text, its words parted by one space."""
    console = Console(file=io.StringIO(), width=150)
    console.print(panel(status, now))
    return " ".join(console.file.getvalue().replace("│", " ").split())


def test_a_run_that_waits(run: RunFolder, fake_slurm: FakeSlurm) -> None:
    fake_slurm.knows("101", "requeued", JobId="101", Reason="Resources")
    fake_slurm.knows("102", "dependency", Dependency="afterok:101(unfulfilled)")
    status = status_of(run)
    assert [(job.job, job.step, job.state) for job in status.jobs] == [
        ("101", "dpo", "PENDING"),
        ("102", "merge", "PENDING"),
    ]
    assert not status.has_ended
    said = headline(status)
    assert said == "dpo waits (Resources: no nodes are free), expected to start 2026-11-22 10:54" or said.endswith(
        "10:54:48"
    )
    assert status.jobs[1].waits_for == "waits for 101 to succeed"


def test_a_run_that_trains(run: RunFolder, fake_slurm: FakeSlurm) -> None:
    record(run.path, {"event": "started", "job": "101", "nodes": ["node3", "node4"]})
    fake_slurm.knows("101", "running")
    fake_slurm.knows("102", "dependency")
    trained(run, 10)
    status = status_of(run)
    assert headline(status) == "dpo trains: step 10/40"
    assert status.advance is not None
    assert status.advance.seconds_left == 15.0  # 30 steps of 4 pairs, 8 pairs a second
    now = datetime(2026, 11, 22, 11, 0, 0)
    text = shown(status, now)
    assert "loss 0.600 margin +0.100 tokens/s 4,932" in text
    assert "0:00:15 left, until" in text
    assert "which is enough" in text
    assert "101 dpo RUNNING node[3-4]" in text
    late = shown(status, now + timedelta(minutes=12, seconds=40))
    assert "before that: it saves and goes on in another start" in late


def test_restarts_are_told_with_their_reasons_and_the_next_start(run: RunFolder, fake_slurm: FakeSlurm) -> None:
    record(
        run.path,
        {"event": "started", "job": "101", "nodes": ["node1"]},
        {"event": "ended", "job": "101", "cause": "preemption", "reason": "Stopped by preemption, in order.",
         "requeued": True, "step": 15},
    )  # fmt: skip
    fake_slurm.knows("101", "requeued")
    fake_slurm.knows("102", "dependency")
    status = status_of(run)
    (restart,) = status.restarts
    assert (restart.job, restart.step, restart.reason) == ("101", 15, "Stopped by preemption, in order.")
    assert "dpo waits again (Slurm lets a requeued job wait for two minutes)" in headline(status)
    text = shown(status)
    assert "1 restart:" in text
    assert "saved at step 15: Stopped by preemption, in order." in text
    assert "next start" in text


def test_a_start_that_could_not_say_how_it_ended_counts_as_well(run: RunFolder, fake_slurm: FakeSlurm) -> None:
    record(run.path, {"event": "started", "job": "101", "nodes": ["node1"], "from_step": 6})
    fake_slurm.knows("101", "requeued")
    fake_slurm.knows("102", "dependency")
    status = status_of(run)
    assert [restart.step for restart in status.restarts] == [6]
    assert "dpo waits again" in headline(status)
    assert "lately job 101, saved at step 6: Slurm took its nodes before it could say why" in shown(status)


def test_a_run_that_is_complete_asks_slurm_nothing(run: RunFolder, no_slurm: None) -> None:
    done = {"event": "ended", "cause": "done", "requeued": False, "exit_code": 0}
    record(run.path, {**done, "job": "101", "reason": "The run is complete.", "nodes": ["node1", "node2"]})
    record(run.path, {**done, "job": "102", "reason": "lora-dpo merge is through.", "stage": "merge"})
    trained(run, 40)
    run.report_json.write_text("{}")
    status = status_of(run)
    assert (headline(status), status.has_ended, status.remark) == ("complete", True, "")
    assert "report runs/small/report.md" in shown(status)


def test_a_failure_says_why(run: RunFolder, fake_slurm: FakeSlurm) -> None:
    why = "node2, rank 3: CUDA out of memory."
    record(
        run.path, {"event": "ended", "job": "101", "cause": "failure", "reason": why, "requeued": False, "exit_code": 1}
    )
    fake_slurm.knows("102", "cancelled_dependency")
    status = status_of(run)
    assert headline(status) == f"dpo ended: {why}"
    assert [job.state for job in status.jobs] == ["FAILED", "CANCELLED"]
    assert status.jobs[1].ended == "It was cancelled."


@pytest.fixture
def chain(run: RunFolder, fake_slurm: FakeSlurm) -> RunFolder:
    """The run as a chain of three jobs, 101 to 103, and a merge after it; the time of the first one has ended."""
    jobs = [{"job": number} for number in ("101", "102", "103", "104")]
    (run.slurm / "submission.json").write_text(json.dumps({"jobs": jobs}))
    (run.slurm / "jobs.jsonl").unlink()
    for number in ("101", "102", "103", "104"):
        record(run.path, {"event": "submitted", "job": number, "stage": "merge" if number == "104" else "dpo"})
    end = {"cause": "time limit", "reason": "Stopped by the time limit. The next job of the chain goes on."}
    record(run.path, {"event": "ended", "job": "101", "exit_code": 85, "requeued": False, "action": "chain", **end})
    return run


def test_a_chain_is_complete_when_its_last_job_says_so(chain: RunFolder) -> None:
    for number, reason in (("102", "The run is complete."), ("103", "The run was complete."), ("104", "Through.")):
        stage = "merge" if number == "104" else "dpo"
        end = {"event": "ended", "cause": "done", "reason": reason, "exit_code": 0, "requeued": False, "action": "done"}
        record(chain.path, {**end, "job": number, "stage": stage})
    status = status_of(chain)
    assert headline(status) == "complete"
    assert [job.state for job in status.jobs] == ["CHAINED", "COMPLETED", "COMPLETED", "COMPLETED"]


def test_a_chain_that_has_given_up_says_why_it_did(chain: RunFolder, fake_slurm: FakeSlurm) -> None:
    stop = {"event": "ended", "cause": "failure", "exit_code": 1, "requeued": False, "action": "stop"}
    record(chain.path, {**stop, "job": "102", "reason": "Rank 1 died."})
    record(chain.path, {**stop, "job": "103", "reason": "An earlier job of this chain has given up: Rank 1 died."})
    fake_slurm.knows("104", "cancelled_dependency")
    assert headline(status_of(chain)) == "dpo ended: An earlier job of this chain has given up: Rank 1 died."


def test_a_chain_that_was_too_short_is_not_complete(chain: RunFolder, fake_slurm: FakeSlurm) -> None:
    left = {"event": "ended", "cause": "time limit", "exit_code": 85, "requeued": False}
    record(chain.path, {**left, "job": "102", "action": "chain", "reason": "The next job of the chain goes on."})
    record(chain.path, {**left, "job": "103", "action": "stop", "reason": "Out of time."})
    fake_slurm.knows("104", "cancelled_dependency")
    assert headline(status_of(chain)) == "dpo ended: Out of time."


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("TIMEOUT", "Slurm ended it at its time limit."),
        ("NODE_FAIL", "A node of it failed."),
        ("OUT_OF_MEMORY", "It needed more memory than it had asked for."),
        ("FAILED", "Slurm says FAILED, exit code 0:0."),
    ],
)
def test_what_the_job_could_not_say_itself_slurm_says(
    run: RunFolder, fake_slurm: FakeSlurm, state: str, words: str
) -> None:
    record(run.path, {"event": "started", "job": "101", "nodes": ["node1"]})
    fake_slurm.knows("101", "completed", JobState=state)
    fake_slurm.knows("102", "cancelled_dependency")
    assert headline(status_of(run)) == f"dpo ended: {words}"


@pytest.mark.parametrize(
    ("event", "state", "seconds_ago", "is_open"),
    [
        ({"event": "ended", "requeued": True}, "COMPLETED", 5, True),
        ({"event": "ended", "requeued": True}, "FAILED", 60, False),
        ({"event": "ended", "requeued": True}, "CANCELLED", 5, False),
        ({"event": "started"}, "NODE_FAIL", 5, True),
        ({"event": "started"}, "PREEMPTED", 60, False),
        ({"event": "started"}, "OUT_OF_MEMORY", 5, False),
    ],
)
def test_a_job_between_two_starts_has_not_ended(
    run: RunFolder, fake_slurm: FakeSlurm, event: dict, state: str, seconds_ago: int, is_open: bool
) -> None:
    record(run.path, {"job": "101", "cause": "preemption", **event})
    end = datetime.now() - timedelta(seconds=seconds_ago)
    fake_slurm.knows("101", "completed", JobState=state, EndTime=f"{end:%Y-%m-%dT%H:%M:%S}")
    fake_slurm.knows("102", "cancelled_dependency")
    status = status_of(run)
    assert status.has_ended != is_open
    if is_open:
        assert headline(status) == "dpo waits again (Slurm is putting it back into the queue)"


def test_without_accounts_a_job_that_slurm_has_forgotten_is_unknown(run: RunFolder, fake_slurm: FakeSlurm) -> None:
    record(run.path, {"event": "started", "job": "101", "nodes": ["node1"]})
    status = status_of(run)
    assert [job.state for job in status.jobs] == ["UNKNOWN", "UNKNOWN"]
    assert status.has_ended
    (fake_slurm.folder / "sacct.txt").write_text("101|TIMEOUT|0:0|node1|Unknown|Unknown|00:20:00|batch|x\n")
    assert status_of(run).jobs[0].ended == "Slurm ended it at its time limit."


def test_a_controller_that_is_down_is_told_and_the_rest_is_shown(run: RunFolder, fake_slurm: FakeSlurm) -> None:
    record(run.path, {"event": "started", "job": "101", "nodes": ["node1"]})
    (fake_slurm.folder / "down").touch()
    trained(run, 10)
    status = status_of(run)
    assert "Unable to contact slurm controller" in status.remark
    assert not status.has_ended  # it may come back, and --watch waits for that
    assert "step 10/40" in shown(status)
    assert "Unable to contact slurm controller" in shown(status)


def test_only_the_jobs_of_the_newest_submission_are_shown(run: RunFolder, fake_slurm: FakeSlurm) -> None:
    (run.slurm / "submission.json").write_text(json.dumps({"jobs": [{"job": "201", "stage": "dpo"}]}))
    record(run.path, {"event": "submitted", "job": "201"})
    fake_slurm.knows("201", "running")
    assert [job.job for job in status_of(run).jobs] == ["201"]
    record(run.path, {"event": "started", "job": "202"})  # by hand
    assert [job.job for job in status_of(run).jobs] == ["201", "202"]


def test_the_stage_that_runs_is_the_one_whose_steps_are_told(run: RunFolder, fake_slurm: FakeSlurm) -> None:
    recipe = small_recipe("m", Path("runs"), sft={"path": "a.csv"})
    (run.slurm / "recipe.yaml").write_text(to_yaml(recipe))
    (run.slurm / "submission.json").write_text(json.dumps({"jobs": [{"job": "301"}, {"job": "302"}]}))
    record(run.path, {"event": "submitted", "job": "301", "stage": "sft"}, {"event": "submitted", "job": "302"})
    fake_slurm.knows("301", "running")
    fake_slurm.knows("302", "dependency")
    sft = RunFolder(Path("runs/small-sft"))
    sft.path.mkdir()
    entry = {"step": 3, "phase": "train", "loss": 2.5, "examples_per_second": 4.0, "max_steps": 5}
    sft.metrics.write_text(json.dumps(entry) + "\n")
    status = status_of(run)
    assert status.stage == "sft"
    assert headline(status) == "sft trains: step 3/5"
    assert status.advance is not None
    assert (status.advance.margin, status.advance.seconds_left) == (None, 2.0)


def test_before_the_first_line_a_checkpoint_tells_how_far_it_is(run: RunFolder) -> None:
    recipe = small_recipe("m", Path("runs"))
    assert advance_of(run, recipe) is None
    for step in (5, 10):
        place = run.checkpoints / f"step-{step}"
        place.mkdir(parents=True)
        (place / "manifest.json").write_text(json.dumps({"about": {"step": step, "max_steps": 40}}))
    found = advance_of(run, recipe)
    assert found is not None
    assert (found.step, found.max_steps, found.saved_step) == (10, 40, 10)


def test_json_is_plain(run: RunFolder, fake_slurm: FakeSlurm) -> None:
    fake_slurm.knows("101", "running")
    fake_slurm.knows("102", "dependency")
    trained(run, 10)
    found = json.loads(json.dumps(status_of(run).as_json()))
    assert found["progress"]["step"] == 10
    assert found["jobs"][0]["end"] == "2026-11-22T11:12:46"
    assert found["ended"] is False


def test_runs_are_found_by_folder_name_and_job(run: RunFolder, fake_slurm: FakeSlurm) -> None:
    assert find_run("runs/small") == (run, None)
    assert find_run("small") == (run, None)
    assert find_run("102") == (run, "102")
    with pytest.raises(UserError, match="There is no run smal with cluster jobs") as error:
        find_run("smal")
    assert "Did you mean 'runs/small'?" in str(error.value)
    with pytest.raises(UserError, match="Nobody knows a job 999"):
        find_run("999")


def test_a_job_of_another_folder_is_found_by_where_its_output_goes(fake_slurm: FakeSlurm, tmp_path: Path) -> None:
    fake_slurm.knows("400", "completed", StdOut=str(tmp_path / "far" / "mine" / "slurm" / "logs" / "dpo-400.out"))
    assert find_run("400") == (RunFolder(tmp_path / "far" / "mine"), "400")
    fake_slurm.knows("401", "completed", StdOut="/tmp/slurm-401.out")
    with pytest.raises(UserError, match="is none that lora-dpo submitted"):
        find_run("401")


def test_watching_ends_with_the_jobs_and_says_what_changes(
    run: RunFolder, fake_slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(status_view, "_LOOKS_EACH_SECONDS", 0.0)
    fake_slurm.knows("101", "running")
    fake_slurm.knows("102", "dependency")
    looks = iter((4, 4, 40))

    def look() -> RunStatus:
        trained(run, (step := next(looks)))
        if step == 40:
            for job, stage in (("101", "dpo"), ("102", "merge")):
                end = {"event": "ended", "job": job, "stage": stage, "cause": "done", "reason": "Through."}
                record(run.path, {**end, "requeued": False})
        return status_of(run)

    assert status_view.watch(look).has_ended
    said = [line.split(" ", 1)[1] for line in capsys.readouterr().err.splitlines()]
    assert said == ["dpo trains: step 4/40", "complete"]


def test_the_overview_has_a_line_a_run(run: RunFolder, fake_slurm: FakeSlurm) -> None:
    fake_slurm.knows("101", "running")
    fake_slurm.knows("102", "dependency")
    trained(run, 10)
    console = Console(file=io.StringIO(), width=150)
    console.print(overview([status_of(run)]))
    assert console.file.getvalue().splitlines()[1].split() == [
        "runs/small", "101", "102", "10/40", "0.600", "+0.100", "0:00:15", "dpo", "trains:", "step", "10/40",
    ]  # fmt: skip
