from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from lora_dpo.errors import UserError
from lora_dpo.recipe.loading import with_overrides
from lora_dpo.recipe.run_folder import RunFolder
from lora_dpo.recipe.schema import Recipe
from lora_dpo.recipe.sessions import session_overrides, session_recipe, source_hashes
from lora_dpo.recipe.stages import stage_recipe


@pytest.fixture
def asked(tmp_path: Path) -> Recipe:
    (tmp_path / "prefs.jsonl").write_text("{}\n")
    return Recipe.model_validate(
        {
            "model": {"name": "tiny"},
            "adapter": {"init_from": "auto"},
            "data": {"path": str(tmp_path / "prefs.jsonl")},
            "run": {"name": "mine", "folder": str(tmp_path / "runs")},
        }
    )


def begin(recipe: Recipe) -> RunFolder:
    own = stage_recipe(recipe, "dpo")
    run = RunFolder.of(own)
    run.create(own, overwrite=False).release()
    run.provenance.write_text(json.dumps({"sources": source_hashes(own.data)}))
    return run


def finish(recipe: Recipe) -> RunFolder:
    run = begin(recipe)
    run.report_json.write_text("{}")
    return run


def more_data(recipe: Recipe) -> None:
    with Path(str(recipe.data.path)).open("a") as file:
        file.write("{}\n")


def names(recipe: Recipe) -> tuple[str, str | None, str | None]:
    own = stage_recipe(recipe, "dpo")
    return own.run.name, own.adapter.init_from, own.data.split.like


def test_the_first_session_begins_afresh(asked: Recipe) -> None:
    assert names(asked) == ("mine", None, None)


def test_the_next_session_goes_on_from_the_last_finished_one_beside_it(asked: Recipe) -> None:
    first = finish(asked)
    more_data(asked)
    assert names(asked) == ("mine-2", str(first.path), str(first.path))
    second = finish(asked)
    more_data(asked)
    assert names(asked) == ("mine-3", str(second.path), str(second.path))
    assert first.is_complete


def test_an_unfinished_session_goes_on(asked: Recipe) -> None:
    begin(asked)
    assert names(asked) == ("mine", None, None)
    run = RunFolder.of(stage_recipe(asked, "dpo"))
    run.report_json.write_text("{}")
    more_data(asked)
    expected = names(asked)
    begin(asked)
    assert names(asked) == expected
    more_data(asked)
    assert names(asked) == expected


def test_the_same_command_twice_trains_once(asked: Recipe) -> None:
    run = finish(asked)
    assert names(asked) == ("mine", None, None)
    assert run.is_finished(stage_recipe(asked, "dpo"))
    more_data(asked)
    run = finish(asked)
    assert run.path.name == "mine-2"
    assert names(asked)[0] == "mine-2"
    assert run.is_finished(stage_recipe(asked, "dpo"))
    assert names(with_overrides(asked, ["dpo.beta=0.3"]))[0] == "mine-3"


def test_what_is_done_with_the_result_does_not_make_a_session(asked: Recipe) -> None:
    finish(asked)
    assert names(with_overrides(asked, ["hub.repo=me/x", "merge.dtype=float32"]))[0] == "mine"


def test_a_recipe_with_an_sft_stage_has_it_once(asked: Recipe) -> None:
    taught = with_overrides(asked, ["sft.path=answers.csv"])
    sft = str(RunFolder.of(asked).path) + "-sft"
    assert stage_recipe(taught, "sft").run.name == "mine-sft"
    assert names(taught) == ("mine", sft, None)
    finish(taught)
    assert names(taught) == ("mine", sft, None)
    more_data(taught)
    own = stage_recipe(taught, "dpo")
    assert (own.run.name, own.adapter.init_from, own.sft.path) == ("mine-2", sft.removesuffix("-sft"), None)


def test_words_hold_a_recipe_to_its_session(asked: Recipe) -> None:
    finish(asked)
    more_data(asked)
    held = with_overrides(asked, list(session_overrides(asked)))
    assert held == session_recipe(asked)
    finish(asked)
    more_data(asked)
    assert stage_recipe(held, "dpo").run.name == "mine-2"
    assert session_overrides(held) == ()


def test_folds_leave_no_adapter_to_go_on_from(asked: Recipe) -> None:
    with pytest.raises(UserError, match="leaves no adapter to go on from"):
        stage_recipe(with_overrides(asked, ["evaluation.folds=3"]), "dpo")


def test_folds_and_like_do_not_go_together(asked: Recipe) -> None:
    with pytest.raises((UserError, ValidationError), match="both divide the questions"):
        with_overrides(asked, ["data.split.folds=3", "data.split.fold=1", "data.split.like=runs/x"])


def test_hashes_of_sources(tmp_path: Path, asked: Recipe) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "a.jsonl").write_text("{}\n")
    data = with_overrides(asked, [f"data.path=[{asked.data.path}, {tmp_path / 'more'}, org/set]"]).data
    before = source_hashes(data)
    assert before["org/set"] is None
    (tmp_path / "more" / "b.jsonl").write_text("{}\n")
    after = source_hashes(data)
    assert [key for key in before if before[key] != after[key]] == [str(tmp_path / "more")]
