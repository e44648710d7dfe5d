"""What the sbatch scripts are told at the beginning and the end of a job, with Slurm's variables and no Slurm."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from filelock import FileLock

from lora_dpo.cluster import batch
from lora_dpo.cluster.diagnosis import NodeReport
from lora_dpo.cluster.job import TrainingJob
from lora_dpo.cluster.record import Record
from lora_dpo.console import Failure
from lora_dpo.recipe.loading import load_recipe
from lora_dpo.recipe.run_folder import RunFolder

WORDS = ["recipe.yaml", "run.name=mine"]
RUN = RunFolder(Path("runs/mine"))
KEPT = RUN.slurm / "recipe-7.yaml"


@pytest.fixture(autouse=True)
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A job of two nodes; returns a function that changes its variables."""
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(yaml.safe_dump({"model": {"name": "m"}, "run": {"name": "r"}}))
    for name in ("LORA_DPO_STAGE", "LORA_DPO_CHAIN", "LORA_DPO_REQUEUE", "LORA_DPO_MAX_RESTARTS", "LORA_DPO_RUN"):
        monkeypatch.delenv(name, raising=False)

    def change(**variables: str) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    change(SLURM_JOB_ID="7", LORA_DPO_NODES="node1 node2 ")
    return change


def begin(*words: str) -> int:
    return batch.main(["begin", *(words or WORDS)])


def ended(code: int = 1, asked: str = "") -> int:
    return batch.main(["ended", str(code), asked, *WORDS])


def reports(*found: NodeReport) -> None:
    for report in found:
        report.write(TrainingJob.of(WORDS).job.reports)


def checkpoint(step: int) -> None:
    RUN.create(load_recipe(WORDS[0], WORDS[1:]), overwrite=True).release()
    folder = RUN.checkpoints / f"step-{step}"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")


def finish() -> None:
    RUN.create(load_recipe(WORDS[0], WORDS[1:]), overwrite=True).release()
    RUN.report_json.write_text("{}")


def last() -> dict:
    return Record(RUN).events()[-1]


def test_a_job_begins(capfd):
    RUN.path.mkdir(parents=True)
    RUN.stop_file.write_text("of an earlier job")
    assert begin() == 0
    assert capfd.readouterr().out == f"{RUN.stop_file.absolute()}\n{KEPT.absolute()}\n"
    assert load_recipe(KEPT) == load_recipe(WORDS[0], WORDS[1:])
    assert not RUN.stop_file.exists()
    assert {key: last()[key] for key in ("event", "job", "array_task", "restart", "nodes", "stage", "from_step")} == {
        "event": "started", "job": "7", "array_task": None, "restart": 0, "nodes": ["node1", "node2"], "stage": "dpo",
        "from_step": 0,
    }  # fmt: skip


@pytest.mark.parametrize("edited", ["run: {name: other}", "run: {name: half", "model: {name: m}\nrun: {folder: there}"])
def test_started_again_it_reads_what_it_was_started_with(edited: str, job, capfd):
    begin()
    Path("recipe.yaml").write_text(edited)
    job(SLURM_RESTART_COUNT="1")
    capfd.readouterr()
    assert batch.main(["begin", "recipe.yaml"]) == 0
    assert capfd.readouterr().out.splitlines() == [str(RUN.stop_file.absolute()), str(KEPT.absolute())]
    assert [event["restart"] for event in Record(RUN).events() if event["event"] == "started"] == [0, 1]


def test_a_job_of_the_same_number_elsewhere_left_its_recipe(capfd):
    KEPT.parent.mkdir(parents=True)
    KEPT.write_text("run: {name: other}")
    begin()
    assert load_recipe(KEPT) == load_recipe(WORDS[0], WORDS[1:])


def test_there_is_nothing_to_do_for_a_run_that_is_complete(capfd):
    finish()
    assert begin() == 0
    told = capfd.readouterr()
    assert told.out == ""
    assert told.err == "The run is complete: runs/mine/report.md\n"
    assert (last()["cause"], last()["exit_code"]) == ("done", 0)


@pytest.mark.parametrize(
    ("words", "variables", "message"),
    [
        (["recipe.yaml", "train.epoch=1"], {}, "unknown key 'train.epoch'"),
        (["recipe.yaml", "--overwrite"], {}, "--overwrite would begin anew"),
        (
            ["recipe.yaml"],
            {"LORA_DPO_STAGE": "dop"},
            "LORA_DPO_STAGE=dop is no stage that trains.\nDid you mean 'dpo'?",
        ),
        (["recipe.yaml"], {"LORA_DPO_REQUEUE": "always"}, "LORA_DPO_REQUEUE=always"),
        (["recipe.yaml", "evaluation.folds=3"], {}, "evaluation.folds 3 stands for 3 trainings"),
    ],
)
def test_a_mistake_ends_it_before_anything_is_written(words, variables, message, job, capfd):
    job(**variables)
    with pytest.raises(SystemExit) as ended:
        begin(*words)
    assert ended.value.code == 2
    assert message in capfd.readouterr().err
    assert not Path("runs").exists()


def test_a_run_that_is_through_is_done_whatever_srun_says(capfd):
    begin()
    finish()
    capfd.readouterr()
    assert ended(code=143) == 0
    assert capfd.readouterr().out == ""
    assert (last()["cause"], last()["action"], last()["requeued"]) == ("done", "done", False)


def stopped(reason: str, *, in_stopped_json: bool = True) -> None:
    begin()
    checkpoint(12)
    if in_stopped_json:
        RUN.stopped.write_text(json.dumps({"reason": reason, "step": 12}))
    reports(*(NodeReport(node, 85, told=reason) for node in ("node1", "node2")))


@pytest.mark.parametrize("in_stopped_json", [True, False])
@pytest.mark.parametrize(
    ("reason", "asked", "cause", "action"),
    [
        ("the job's time limit", "the job's time limit", "time limit", "requeue"),
        ("the job's time limit", "", "time limit", "requeue"),
        ("preemption", "preemption", "preemption", "requeue"),
        ("SIGTERM", "preemption", "preemption", "requeue"),
        ("SIGTERM", "the end of the job", "ended by Slurm", "stop"),
        ("SIGTERM", "", "failure", "requeue"),
        ("train.max_hours", "", "time limit", "requeue"),
        ("lora-dpo cancel", "", "asked", "stop"),
        ("a stop file", "", "asked", "stop"),
        ("a stop file", "preemption", "preemption", "requeue"),  # a full disk took the words
    ],
)
def test_a_stop_in_order(reason: str, asked: str, cause: str, action: str, in_stopped_json: bool, capfd):
    stopped(reason, in_stopped_json=in_stopped_json)
    capfd.readouterr()
    assert ended(0, asked) == 85
    assert (last()["cause"], last()["action"], last()["step"]) == (cause, action, 12)
    assert capfd.readouterr().out == ("requeue\n" if action == "requeue" else "")


def test_saved_in_order_though_a_launcher_was_ended_after_that(capfd):
    stopped("SIGTERM")
    reports(NodeReport("node1", 85, told="SIGTERM"), NodeReport("node2", 1))
    assert ended(143) == 85
    assert (last()["cause"], last()["reason"], last()["step"]) == ("failure", "Stopped by SIGTERM, in order.", 12)


def test_how_an_earlier_start_ended_says_nothing_of_this_one(job, capfd):
    stopped("preemption")
    ended()
    job(SLURM_RESTART_COUNT="1")
    begin()
    assert ended() == 1
    assert (last()["cause"], last()["restart"]) == ("failure", 1)


def test_it_waits_for_a_start_that_is_still_ending(monkeypatch, capfd):
    checkpoint(3)
    held = FileLock(RUN.path / ".lock", is_singleton=False)
    held.acquire()
    waits = []
    monkeypatch.setattr(batch.time, "sleep", lambda seconds: waits.append(seconds) or held.release())
    assert begin() == 0
    assert waits == [1]


def test_killed_before_it_could_save(capfd):
    begin()
    assert ended(143, "preemption") == 143
    assert (last()["cause"], last()["requeued"]) == ("preemption", True)
    assert last()["reason"] == "Ended by preemption, before it could save."


def test_a_mistake_is_not_tried_again(capfd):
    begin()
    reports(NodeReport("node1", 2, told="Unknown column 'x'."), NodeReport("node2", 1))
    capfd.readouterr()
    assert ended(2) == 2
    assert "The job ends: Unknown column 'x'. Starting again would not mend that." in capfd.readouterr().err


def test_a_mistake_on_a_node_that_could_write_nothing_down(capfd):
    begin()
    reports(NodeReport("node1", 1))
    assert ended(2) == 2
    assert (last()["cause"], last()["requeued"]) == ("mistake", False)


def test_three_failures_in_a_row(job, capfd):
    for restart in range(3):
        job(SLURM_RESTART_COUNT=str(restart))
        begin()
        reports(NodeReport("node1", 0), NodeReport("node2", 1, failures=(Failure(3, 1.0, "ValueError: no"),)))
        capfd.readouterr()
        assert ended() == 1
        assert capfd.readouterr().out == ("requeue\n" if restart < 2 else "")
    assert last()["reason"].startswith("Rank 3 on node2 failed first: ValueError: no")
    job(SLURM_JOB_ID="8", SLURM_RESTART_COUNT="0")  # somebody has mended it, and submitted it again
    begin()
    assert ended() == 1
    assert last()["requeued"]


def test_a_chain_that_has_given_up_is_at_its_end(job, capfd):
    job(LORA_DPO_CHAIN="c", LORA_DPO_REQUEUE="chain")
    for number in ("1", "2", "3"):
        job(SLURM_JOB_ID=number)
        begin()
        ended()
    assert last()["action"] == "stop"
    for number in ("4", "5"):
        job(SLURM_JOB_ID=number)
        with pytest.raises(SystemExit) as end:
            begin()
        assert end.value.code == 2
    assert last()["reason"].startswith("An earlier job of this chain has given up (job 3): node1, node2 were killed")
    job(LORA_DPO_CHAIN="another")
    assert begin() == 0


def test_a_start_that_vanished_is_written_down_by_the_next(job):
    begin()
    checkpoint(30)
    job(SLURM_RESTART_COUNT="1")
    begin()
    started, vanished, again = Record(RUN).events()
    assert (vanished["event"], vanished["cause"], vanished["restart"]) == ("ended", "vanished", 0)
    assert (vanished["step"], again["from_step"], again["restart"]) == (30, 30, 1)
    assert started["from_step"] == vanished["from_step"] == 0


def test_what_vanished_in_a_chain_was_not_requeued(job):
    job(LORA_DPO_CHAIN="c", LORA_DPO_REQUEUE="chain")
    begin()
    job(SLURM_JOB_ID="8")
    begin()
    _, vanished, again = Record(RUN).events()
    assert (vanished["job"], vanished["cause"], vanished["requeued"]) == ("7", "vanished", False)
    assert (again["event"], again["job"]) == ("started", "8")


def test_slurm_would_not_requeue(capfd):
    begin()
    ended()
    assert batch.main(["not-requeued", "Access denied", *WORDS]) == 0
    assert (last()["requeued"], last()["reason"]) == (False, "Slurm would not requeue the job: Access denied")


def test_the_stages_of_a_recipe_share_one_record(job):
    job(LORA_DPO_STAGE="sft")
    begin(*WORDS, "sft.path=answers.jsonl")
    assert (last()["stage"], RunFolder(Path("runs/mine-sft")).slurm.exists()) == ("sft", False)


def test_a_verb_is_written_down_where_its_run_is_known(job, capfd):
    assert batch.main(["begin-verb", "merge", "runs/mine"]) == 0
    assert not RUN.path.exists()
    job(LORA_DPO_RUN="runs/mine")
    assert batch.main(["begin-verb", "merge", "runs/mine"]) == 0
    assert (last()["event"], last()["stage"]) == ("started", "merge")
    for code, asked, requeue in ((0, "", False), (2, "", False), (143, "preemption", True), (1, "", True)):
        capfd.readouterr()
        assert batch.main(["ended-verb", str(code), asked, "merge", "runs/mine"]) == code
        assert capfd.readouterr().out == ("requeue\n" if requeue else "")
