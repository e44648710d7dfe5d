from __future__ import annotations

from pathlib import Path

import pytest

from lora_dpo.data.example import Example
from lora_dpo.data.learnt import check_not_learnt
from lora_dpo.data.manifest import write_examples, write_pairs
from lora_dpo.data.pair import Pair, group_of, user
from lora_dpo.errors import UserError
from lora_dpo.recipe.run_folder import RunFolder
from lora_dpo.recipe.schema import Recipe


def pair(question: str) -> Pair:
    return Pair(user(question), "yes", "no", group_of(user(question)))


def recipe(folder: Path, name: str, begins_with: object = None) -> Recipe:
    values = {"model": {"name": "tiny"}, "run": {"name": name, "folder": str(folder)}}
    start = None if begins_with is None else str(begins_with)
    return Recipe.model_validate({**values, "adapter": {"init_from": start}})


def run_of(made: Recipe) -> RunFolder:
    run = RunFolder.of(made)
    run.create(made, overwrite=False).release()
    run.data.mkdir()
    return run


@pytest.fixture
def taught(tmp_path: Path) -> RunFolder:
    """An SFT run that has learnt one question, under a group's name of its own, and held another one out."""
    run = run_of(recipe(tmp_path, "taught"))
    train = [Example(user("What is a bat?"), "A mammal.", "17")]
    test = [Example(user("What is a whale?"), "A mammal.", "18")]
    write_examples(run.data / "examples.jsonl", {"train": train, "validation": [], "test": test})
    return run


@pytest.mark.parametrize("place", ["", "adapter"])
def test_a_question_that_was_learnt_is_refused_however_it_is_spelt(
    place: str, taught: RunFolder, tmp_path: Path
) -> None:
    (taught.path / "adapter").mkdir()
    asked = recipe(tmp_path, "next", taught.path / place)
    check_not_learnt(asked, [pair("What is a whale?"), pair("What is a cat?")])
    with pytest.raises(UserError, match=r"^1 of 2 held-out questions were learnt by .*taught, which this run begins"):
        check_not_learnt(asked, [pair("what is a  bat"), pair("What is a cat?")])


def test_what_was_learnt_two_runs_before_counts_too(taught: RunFolder, tmp_path: Path) -> None:
    aligned = run_of(recipe(tmp_path, "aligned", taught.path))
    write_pairs(aligned.data / "pairs.jsonl", {"train": [pair("What is a cat?")], "validation": [], "test": []})
    asked = recipe(tmp_path, "next", aligned.path)
    with pytest.raises(UserError, match="learnt by .*aligned"):
        check_not_learnt(asked, [pair("What is a cat?")])
    with pytest.raises(UserError, match="learnt by .*taught"):
        check_not_learnt(asked, [pair("What is a bat?")])
    check_not_learnt(asked, [pair("What is a dog?")])


def test_a_whole_model_of_a_run_is_known_as_well(taught: RunFolder, tmp_path: Path) -> None:
    taught.model.mkdir()
    asked = recipe(tmp_path, "next")
    asked = asked.model_copy(update={"model": asked.model.model_copy(update={"name": str(taught.model)})})
    with pytest.raises(UserError, match="learnt by .*taught"):
        check_not_learnt(asked, [pair("What is a bat?")])


def test_of_an_adapter_in_no_run_nothing_is_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check_not_learnt(recipe(tmp_path, "next", "org/adapter"), [pair("What is a bat?")])
    said = " ".join(capsys.readouterr().err.split())
    assert "org/adapter is in no run, so it is not known whether it has learnt what is held out here" in said
