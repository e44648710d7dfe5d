"""`lora-dpo logs`: which files are the newest start's, and following them."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_dpo.cluster import logs as module
from lora_dpo.cluster.logs import follow, logs_of, newest_start, show
from lora_dpo.errors import UserError
from lora_dpo.recipe.run_folder import RunFolder
from tests.cluster.conftest import record

FILES = (
    *("dpo-9.out", "dpo-9.0.node1.out", "dpo-9.0.node2.out"),
    *("dpo-10.out", "dpo-10.0.node1.out", "dpo-10.0.node2.out", "dpo-10.1.node3.out", "dpo-10.1.node2.out"),
    *("merge-11.out", "merge-11.x"),
)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A run with the logs of three jobs, of which one was started twice."""
    monkeypatch.chdir(tmp_path)
    found = RunFolder(Path("runs/mine"))
    (found.slurm / "logs").mkdir(parents=True)
    for name in FILES:
        (found.slurm / "logs" / name).write_text(f"{name}\n")
    record(found.path, {"event": "started", "job": "10", "restart": 1, "nodes": ["node3", "node2"]})
    return found


def names(run: RunFolder, **which: str) -> list[str]:
    return [log.path.name for log in newest_start(run, logs_of(run, **which))]


def test_the_newest_start_is_the_jobs_log_and_its_other_nodes(run: RunFolder) -> None:
    assert names(run) == ["merge-11.out"]
    assert names(run, stage="dpo") == ["dpo-10.out", "dpo-10.1.node2.out"]  # node3's lines are in the job's own
    assert names(run, job="9") == ["dpo-9.out", "dpo-9.0.node1.out", "dpo-9.0.node2.out"]


def test_a_log_that_is_not_there(run: RunFolder) -> None:
    with pytest.raises(UserError, match="has no log of a job mrege") as error:
        logs_of(run, stage="mrege")
    assert "Did you mean 'merge'?" in str(error.value)
    with pytest.raises(UserError, match="has no log of job 12 yet"):
        logs_of(run, job="12")


def test_each_log_stands_below_its_name(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    show(newest_start(run, logs_of(run, stage="dpo")))
    folder = "runs/mine/slurm/logs"
    assert capsys.readouterr().out == (
        f"==> {folder}/dpo-10.out <==\ndpo-10.out\n==> {folder}/dpo-10.1.node2.out <==\ndpo-10.1.node2.out\n"
    )


def test_following_goes_over_to_the_next_job_and_ends_with_the_last(
    run: RunFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_ASKS_EACH_SECONDS", 0.0)
    folder = run.slurm / "logs"
    asked = []

    def has_ended() -> bool:
        asked.append(1)
        if len(asked) == 1:
            with (folder / "merge-11.out").open("a") as file:
                file.write("more\nhalf a li")
            return False
        if len(asked) == 2:
            (folder / "push-12.out").write_text("pushed\n")
            with (folder / "merge-11.out").open("a") as file:
                file.write("ne\n")
            return False
        return True

    follow(lambda: logs_of(run)[-2:] if len(asked) > 1 else logs_of(run)[-1:], has_ended)
    text = capsys.readouterr().out
    assert text == (
        "==> runs/mine/slurm/logs/merge-11.out <==\nmerge-11.out\nmore\nhalf a line\n"
        "==> runs/mine/slurm/logs/push-12.out <==\npushed\n"
    )
