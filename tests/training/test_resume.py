from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from lora_dpo.errors import UserError
from lora_dpo.files import write_text
from lora_dpo.recipe.meaning import meaning_hash
from lora_dpo.recipe.run_folder import RunFolder
from lora_dpo.recipe.schema import Recipe
from lora_dpo.training.checkpoints import About, Checkpoints
from lora_dpo.training.resume import find_start, open_run, origin_of, write_provenance

DATA = {"train": "a", "validation": "b", "test": "c"}
ORIGIN = {"model.name": "w", "adapter.init_from": None, "model.dtype": "float32"}


def recipe(folder: Path, name: str = "first", resume: str = "auto", **sections: dict) -> Recipe:
    run = {"name": name, "folder": str(folder), "resume": resume}
    return Recipe.model_validate({"model": {"name": "m"}, "run": run, **sections})


def save(run: RunFolder, of: Recipe, step: int, metrics_bytes: int = 0) -> Path:
    checkpoints = Checkpoints(run.checkpoints)
    checkpoints.clear_partial()
    folder = checkpoints.partial / f"checkpoint-{step}"
    write_text(folder / "weights", f"of {step}")
    about = About(step, 9, 1, "replicated", of.model_dump(mode="json"), meaning_hash(of), DATA, ORIGIN, metrics_bytes)
    return checkpoints.commit(folder, about)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """Returns an unfinished run with two checkpoints."""
    run = RunFolder.of(recipe(tmp_path))
    run.create(recipe(tmp_path), overwrite=False).release()
    write_text(run.metrics, "1\n2\n3\n")
    save(run, recipe(tmp_path), 2, metrics_bytes=2)
    save(run, recipe(tmp_path), 4, metrics_bytes=4)
    return run


def test_the_newest_whole_checkpoint_is_where_it_goes_on(run: RunFolder, tmp_path: Path, capfd) -> None:
    assert find_start(recipe(tmp_path), run, DATA, ORIGIN, overwrite=False).about.step == 4
    os.truncate(run.checkpoints / "step-4" / "weights", 1)
    assert find_start(recipe(tmp_path), run, DATA, ORIGIN, overwrite=False).about.step == 2
    assert "Passed over: " in capfd.readouterr().err
    os.truncate(run.checkpoints / "step-2" / "manifest.json", 1)
    with pytest.raises(UserError, match="has no whole checkpoint left to go on from"):
        find_start(recipe(tmp_path), run, DATA, ORIGIN, overwrite=False)


def test_a_run_without_checkpoints_begins_again(tmp_path: Path, capfd) -> None:
    run = RunFolder.of(recipe(tmp_path))
    run.create(recipe(tmp_path), overwrite=False).release()
    assert find_start(recipe(tmp_path), run, DATA, ORIGIN, overwrite=False) is None
    assert "has no checkpoint yet: it begins again." in " ".join(capfd.readouterr().err.split())


@pytest.mark.parametrize(("resume", "overwrite"), [("never", False), ("auto", True), ("never", True)])
def test_it_begins_again_where_that_is_asked_for(run: RunFolder, tmp_path: Path, resume: str, overwrite: bool) -> None:
    assert find_start(recipe(tmp_path, resume=resume), run, DATA, ORIGIN, overwrite=overwrite) is None


def test_a_run_that_is_not_there_begins(tmp_path: Path) -> None:
    assert find_start(recipe(tmp_path), RunFolder(tmp_path / "first"), DATA, ORIGIN, overwrite=False) is None
    assert list(tmp_path.iterdir()) == []


def test_a_path_is_taken_at_its_word(run: RunFolder, tmp_path: Path) -> None:
    path = run.checkpoints / "step-2"
    run.data.mkdir()
    start = find_start(recipe(tmp_path, resume=str(path)), run, DATA, ORIGIN, overwrite=False)
    assert start.path == path
    with pytest.raises(UserError, match="--overwrite would remove"):
        find_start(recipe(tmp_path, resume=str(path)), run, DATA, ORIGIN, overwrite=True)
    write_text(path / "weights", "of X")
    with pytest.raises(UserError, match="is damaged: weights has 4 of 4|is damaged: weights is not what was written"):
        find_start(recipe(tmp_path, resume=str(path)), run, DATA, ORIGIN, overwrite=False)
    with pytest.raises(UserError, match=r"run.resume is autoo, which is no folder.\n.*\nDid you mean 'auto'\?"):
        find_start(recipe(tmp_path, resume="autoo"), run, DATA, ORIGIN, overwrite=False)
    with pytest.raises(UserError, match="Did you mean '.*step-4'"):
        find_start(recipe(tmp_path, resume=str(path.with_name("step-44"))), run, DATA, ORIGIN, overwrite=False)
    with pytest.raises(UserError, match="data is no complete checkpoint"):
        find_start(recipe(tmp_path, resume=str(run.path / "data")), run, DATA, ORIGIN, overwrite=False)


def test_a_run_s_path_is_its_newest_whole_checkpoint(run: RunFolder, tmp_path: Path) -> None:
    branch = recipe(tmp_path, "second", resume=str(run.path))
    assert find_start(branch, RunFolder.of(branch), DATA, ORIGIN, overwrite=False).path == run.checkpoints / "step-4"
    os.truncate(run.checkpoints / "step-4" / "weights", 1)
    assert find_start(branch, RunFolder.of(branch), DATA, ORIGIN, overwrite=False).path == run.checkpoints / "step-2"
    empty = RunFolder.of(recipe(tmp_path, "empty"))
    empty.create(recipe(tmp_path, "empty"), overwrite=False).release()
    branch = recipe(tmp_path, "second", resume=str(empty.path))
    with pytest.raises(UserError, match="empty, a run without a checkpoint"):
        find_start(branch, RunFolder.of(branch), DATA, ORIGIN, overwrite=False)


def test_the_same_command_goes_on_though_what_it_began_from_has_gone(run: RunFolder, tmp_path: Path) -> None:
    branch = recipe(tmp_path, "second", resume=str(run.checkpoints / "step-2"))
    new = RunFolder.of(branch)
    new.create(branch, overwrite=False).release()
    shutil.rmtree(run.path)
    with pytest.raises(UserError, match="step-2, which is no folder"):
        find_start(branch, new, DATA, ORIGIN, overwrite=False)
    save(new, branch, 3)
    assert find_start(branch, new, DATA, ORIGIN, overwrite=False).about.step == 3


def test_another_recipe_or_other_data_is_refused_by_name(run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="step-4 is of another recipe") as caught:
        find_start(recipe(tmp_path, dpo={"beta": 0.3}), run, DATA, ORIGIN, overwrite=False)
    assert caught.value.why == "dpo.beta: 0.1 -> 0.3"
    with pytest.raises(UserError, match="step-4 was trained on other data") as caught:
        find_start(recipe(tmp_path), run, {**DATA, "train": "changed"}, ORIGIN, overwrite=False)
    assert caught.value.why == "The pairs of train have changed since."
    assert find_start(recipe(tmp_path, train={"save_steps": 2}), run, DATA, ORIGIN, overwrite=False).about.step == 4


def test_metrics_end_where_the_checkpoint_was_written(run: RunFolder, tmp_path: Path) -> None:
    start = find_start(recipe(tmp_path), run, DATA, ORIGIN, overwrite=False)
    open_run(recipe(tmp_path), run, start, overwrite=False).release()
    assert run.metrics.read_text(encoding="utf-8") == "1\n2\n"
    assert Checkpoints(run.checkpoints).steps() == [2, 4]


def test_metrics_that_are_too_short_are_told(run: RunFolder, tmp_path: Path, capfd) -> None:
    run.metrics.unlink()
    start = find_start(recipe(tmp_path), run, DATA, ORIGIN, overwrite=False)
    open_run(recipe(tmp_path), run, start, overwrite=False).release()
    assert "has 0 of the 4 bytes that it had at the checkpoint" in " ".join(capfd.readouterr().err.split())


def test_a_new_run_may_branch_off_another_run_s_checkpoint(run: RunFolder, tmp_path: Path) -> None:
    branch = recipe(tmp_path, "second", resume=str(run.checkpoints / "step-2"))
    new = RunFolder.of(branch)
    start = find_start(branch, new, DATA, ORIGIN, overwrite=False)
    open_run(branch, new, start, overwrite=False).release()
    assert new.metrics.read_text(encoding="utf-8") == "1\n"
    assert run.metrics.read_text(encoding="utf-8") == "1\n2\n3\n"
    assert Checkpoints(new.checkpoints).steps() == []


def provenance(weights: str = "w", world: int = 1) -> dict:
    return {"schema_version": 1, "model": {"name": "m", "weights_sha256": weights}, "seed": 0, "world_size": world}


def test_provenance_keeps_the_beginning_and_adds_each_start(run: RunFolder, tmp_path: Path) -> None:
    write_provenance(run, provenance(), None)
    start = find_start(recipe(tmp_path), run, DATA, ORIGIN, overwrite=False)
    for world in (2, 4):
        write_provenance(run, provenance(world=world), start)
    content = json.loads(run.provenance.read_text(encoding="utf-8"))
    assert {key: content[key] for key in provenance()} == provenance()
    assert [(entry["step"], entry["world_size"], set(entry)) for entry in content["resumed"]] == [
        (4, 2, {"step", "at", "world_size"}),
        (4, 4, {"step", "at", "world_size"}),
    ]


def test_another_model_under_the_same_name_is_refused(run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="step-4 began with another model, or in another precision") as caught:
        find_start(recipe(tmp_path), run, DATA, {**ORIGIN, "model.name": "other"}, overwrite=False)
    assert caught.value.why == "model.name: w -> other"


def test_what_a_recipe_only_names_is_known_by_its_files(tiny_models, tmp_path: Path) -> None:
    model = tiny_models("gpt2")
    first = Recipe.model_validate({"model": {"name": str(model)}, "run": {"name": "first"}})
    found = origin_of(first)
    assert len(found["model.name"]) == 64
    assert (found["adapter.init_from"], found["model.dtype"]) == (None, "float32")
    bfloat16 = first.model_copy(update={"model": first.model.model_copy(update={"dtype": "bfloat16"})})
    assert origin_of(bfloat16) == {**found, "model.dtype": "bfloat16"}


def test_the_same_command_with_a_path_goes_on_with_what_it_has_done(run: RunFolder, tmp_path: Path) -> None:
    """A job that is requeued is started by the command that it was submitted with."""
    path = run.checkpoints / "step-2"
    branch = recipe(tmp_path, "second", resume=str(path))
    new = RunFolder.of(branch)
    assert find_start(branch, new, DATA, ORIGIN, overwrite=False).path == path
    new.create(branch, overwrite=False).release()
    assert find_start(branch, new, DATA, ORIGIN, overwrite=False).path == path  # nothing has been done yet
    own = save(new, branch, 3)
    assert find_start(branch, new, DATA, ORIGIN, overwrite=False).path == own


def test_going_back_forgets_the_later_steps_at_once(run: RunFolder, tmp_path: Path) -> None:
    back = recipe(tmp_path, resume=str(run.checkpoints / "step-2"))
    start = find_start(back, run, DATA, ORIGIN, overwrite=False)
    open_run(back, run, start, overwrite=False).release()
    assert Checkpoints(run.checkpoints).steps() == [2]
    assert run.metrics.read_text(encoding="utf-8") == "1\n"
