from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from filelock import FileLock, Timeout

from lora_dpo.errors import UserError
from lora_dpo.files import partial_path, replace_folder, write_json, write_text
from lora_dpo.recipe.run_folder import RunFolder
from lora_dpo.recipe.schema import Recipe


def recipe(folder: Path, name: str = "first", **train) -> Recipe:
    values = {"model": {"name": "m"}, "run": {"name": name, "folder": str(folder)}, "train": train}
    return Recipe.model_validate(values)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def with_resume(of: Recipe, resume: str) -> Recipe:
    return of.model_copy(update={"run": of.run.model_copy(update={"resume": resume})})


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """Returns a run that has just been created."""
    run = RunFolder.of(recipe(tmp_path))
    run.create(recipe(tmp_path), overwrite=False)
    return run


def finish(run: RunFolder) -> None:
    """Fills the folder with all that a run leaves."""
    for file in (run.provenance, run.metrics, run.report_md, run.data / "pairs.jsonl", run.plots / "loss.png"):
        write_text(file, "old")
    for folder in (run.checkpoints / "step-1", run.adapter, run.model):
        write_text(folder / "weights", "old")
    write_json(run.report_json, {"old": True})


def test_a_new_run_holds_its_resolved_recipe_and_nothing_else(run: RunFolder, tmp_path: Path) -> None:
    assert run.path == tmp_path / "first"
    assert sorted(contents(run.path)) == [".lock", "recipe.yaml"]
    assert run.load_recipe() == recipe(tmp_path)
    assert run.is_run
    assert not run.is_complete


def test_naming_a_run_creates_nothing(tmp_path: Path) -> None:
    RunFolder.of(recipe(tmp_path / "runs")).check_free(recipe(tmp_path / "runs"), overwrite=False)
    assert list(tmp_path.iterdir()) == []


def test_the_home_folder_may_be_written_as_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert RunFolder.of(recipe(Path("~/runs"))).path == tmp_path / "runs" / "first"


@pytest.mark.parametrize("complete", [False, True])
def test_a_run_is_not_overwritten_unless_asked(run: RunFolder, tmp_path: Path, complete: bool) -> None:
    if complete:
        finish(run)
    before = contents(run.path)
    state = "a finished run" if complete else "an unfinished run"
    again = recipe(tmp_path) if complete else with_resume(recipe(tmp_path), "never")
    for attempt in (run.check_free, run.create):
        with pytest.raises(UserError, match=f"holds {state}, which is never overwritten by accident") as caught:
            attempt(again, overwrite=False)
        assert "run.name=NAME" in caught.value.fix
        assert "--overwrite" in caught.value.fix
    assert contents(run.path) == before


def test_an_unfinished_run_goes_on_with_the_same_recipe_only(run: RunFolder, tmp_path: Path) -> None:
    before = contents(run.path)
    run.check_free(recipe(tmp_path, save_steps=5), overwrite=False)  # says nothing about the model
    with pytest.raises(UserError, match="holds an unfinished run of another recipe") as caught:
        run.check_free(recipe(tmp_path, epochs=9), overwrite=False)
    assert caught.value.why == "train.epochs: 1.0 -> 9.0"
    assert "--overwrite" in caught.value.fix
    assert contents(run.path) == before


def test_reopening_keeps_what_is_there_and_writes_the_recipe_of_now(run: RunFolder, tmp_path: Path) -> None:
    write_text(run.metrics, "of the first process")
    write_json(run.stopped, {"reason": "SIGTERM"})
    lock = run.reopen(recipe(tmp_path, save_steps=5))
    assert run.load_recipe().train.save_steps == 5
    assert run.metrics.read_text(encoding="utf-8") == "of the first process"
    assert not run.stopped.exists()
    with pytest.raises(Timeout):
        FileLock(run.path / ".lock").acquire(timeout=0)
    lock.release()


def test_overwriting_removes_every_trace_of_the_run_but_not_what_was_put_beside(run: RunFolder, tmp_path: Path) -> None:
    finish(run)
    write_text(run.path / "notes.txt", "mine")
    write_text(run.path / ".adapter.partial" / "weights", "of a run that was killed")
    run.create(recipe(tmp_path, epochs=9), overwrite=True)
    run.discard_replaced()
    assert sorted(contents(run.path)) == [".lock", "notes.txt", "recipe.yaml"]
    assert run.load_recipe().train.epochs == 9
    assert not run.is_complete


def test_overwriting_does_not_follow_links(run: RunFolder, tmp_path: Path) -> None:
    write_text(tmp_path / "elsewhere" / "weights", "mine")
    run.checkpoints.symlink_to(tmp_path / "elsewhere")
    run.create(recipe(tmp_path), overwrite=True)
    assert contents(tmp_path / "elsewhere") == {"weights": b"mine"}
    assert not run.checkpoints.exists()


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("foreign", ["thesis.tex", "recipe.yaml", "report.json"])
def test_a_folder_of_other_files_is_never_touched(tmp_path: Path, foreign: str, overwrite: bool) -> None:
    """Not even one with a recipe.yaml that somebody wrote by hand."""
    folder = tmp_path / "first"
    write_text(folder / foreign, "model: {name: m}\nrun: {name: first}\n")
    write_text(folder / "data" / "years-of-work.csv", "a,b\n")
    before = contents(folder)
    with pytest.raises(UserError, match="holds files that are not a run's; nothing in it was touched"):
        RunFolder(folder).create(recipe(tmp_path), overwrite=overwrite)
    assert contents(folder) == before


def test_an_empty_folder_may_become_a_run(tmp_path: Path) -> None:
    (tmp_path / "first").mkdir()
    RunFolder.of(recipe(tmp_path)).create(recipe(tmp_path), overwrite=False)
    assert (tmp_path / "first" / "recipe.yaml").is_file()


@pytest.mark.parametrize("in_the_way", ["first", ""])
def test_a_file_in_the_way_stays(tmp_path: Path, in_the_way: str) -> None:
    folder = tmp_path / "runs"
    file = folder / in_the_way if in_the_way else folder
    write_text(file, "mine")
    for overwrite in (False, True):
        with pytest.raises(UserError, match=f"{file} is a file, so .*first cannot become the run's folder"):
            RunFolder.of(recipe(folder)).create(recipe(folder), overwrite=overwrite)
    assert file.read_text(encoding="utf-8") == "mine"


def test_a_dangling_link_in_the_way_is_said_before_anything_is_trained(tmp_path: Path) -> None:
    (tmp_path / "first").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="first is a file, so"):
        RunFolder.of(recipe(tmp_path)).check_free(recipe(tmp_path), overwrite=False)


def test_a_folder_that_may_not_be_written_is_said_before_anything_is_trained(tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", locked], capture_output=True, check=False)
    if mount.returncode:  # not root: a mode is enough
        locked.chmod(0o555)
    try:
        with pytest.raises(UserError, match=f"{locked} may not be written to"):
            RunFolder.of(recipe(locked / "runs")).check_free(recipe(locked / "runs"), overwrite=False)
    finally:
        if mount.returncode:
            locked.chmod(0o755)
        else:
            subprocess.run(["umount", locked], check=True)


def test_opening_a_run_that_is_not_there_leads_to_the_nearest(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert RunFolder.open(run.path) == run
    with pytest.raises(UserError) as caught:
        RunFolder.open(tmp_path / "frist")
    what, why, fix = str(caught.value).splitlines()
    assert what == f"There is no run at {tmp_path / 'frist'}."
    assert why == "A run folder holds a recipe.yaml."
    assert fix == f"Did you mean '{tmp_path / 'first'}'?"
    monkeypatch.chdir(tmp_path)
    RunFolder.of(recipe(Path("runs"), "second")).create(recipe(Path("runs"), "second"), overwrite=False)
    with pytest.raises(UserError, match="Did you mean 'runs/second'"):
        RunFolder.open("secnod")
    with pytest.raises(UserError, match="Known: first, runs/second"):
        RunFolder.open("zzz")
    with pytest.raises(UserError, match="There is no run at no/such/place"):
        RunFolder.open("no/such/place")


def test_a_run_of_another_version_can_still_be_opened(run: RunFolder) -> None:
    text = run.recipe.read_text(encoding="utf-8")
    run.recipe.write_text(text.partition("\n")[2], encoding="utf-8")
    assert RunFolder.open(run.path).load_recipe().run.name == "first"


def test_a_replaced_run_comes_back_if_the_new_one_fails(run: RunFolder, tmp_path: Path) -> None:
    finish(run)
    before = contents(run.path)
    for _ in range(2):  # the second start finds what the first one left when it was killed
        run.create(recipe(tmp_path, epochs=9), overwrite=True)
        write_text(run.metrics, "of the new run")
    run.restore_replaced()
    assert contents(run.path) == before
    assert run.is_complete


def test_two_processes_cannot_write_one_run(run: RunFolder, tmp_path: Path) -> None:
    finish(run)
    before = contents(run.path)
    lock = FileLock(run.path / ".lock")
    with lock, pytest.raises(UserError, match="Another process is writing"):
        run.create(recipe(tmp_path, epochs=9), overwrite=True)
    assert contents(run.path) == before


@pytest.mark.parametrize("left", [(".lock",), (".lock", "stop"), (".lock", ".recipe.yaml.partial")])
def test_what_a_crash_left_of_no_run_is_not_in_the_way(tmp_path: Path, left: tuple[str, ...]) -> None:
    for name in left:
        write_text(tmp_path / "first" / name, "")
    RunFolder.of(recipe(tmp_path)).create(recipe(tmp_path), overwrite=False).release()
    assert RunFolder.of(recipe(tmp_path)).is_run


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_run_that_was_being_put_aside_when_its_successor_was_killed_is_not_lost(
    run: RunFolder, tmp_path: Path, overwrite: bool
) -> None:
    finish(run)
    before = contents(run.path)
    run.create(recipe(tmp_path, epochs=9), overwrite=True).release()
    run.recipe.unlink()  # killed before it was written
    if overwrite:
        run.create(recipe(tmp_path, epochs=9), overwrite=True)
        assert (run.path / ".replaced" / "report.json").is_file()
        return
    with pytest.raises(UserError, match="holds a finished run"):
        run.create(recipe(tmp_path, epochs=9), overwrite=False)
    assert contents(run.path) == before


def test_discarded_results_do_not_come_back_though_one_cannot_be_removed(run: RunFolder, tmp_path: Path) -> None:
    finish(run)
    run.create(recipe(tmp_path, epochs=9), overwrite=True)
    open_file = run.path / ".replaced" / "plots"
    mount = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", open_file], capture_output=True, check=False)
    write_text(run.metrics, "of the new run")
    run.discard_replaced()
    try:
        run.restore_replaced()
        assert run.metrics.read_text(encoding="utf-8") == "of the new run"
        assert run.load_recipe().train.epochs == 9
    finally:
        if mount.returncode == 0:
            subprocess.run(["umount", run.path / ".discarded" / "plots"], check=True)


def test_a_folder_takes_the_place_of_an_earlier_one(tmp_path: Path) -> None:
    write_text(tmp_path / "adapter" / "old", "old")
    write_text(tmp_path / ".adapter.partial" / "new", "new")
    replace_folder(partial_path(tmp_path / "adapter"), tmp_path / "adapter")
    assert contents(tmp_path) == {"adapter/new": b"new"}
