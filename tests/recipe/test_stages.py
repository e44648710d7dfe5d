from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from lora_dpo.errors import UserError
from lora_dpo.recipe.folds import fold_overrides
from lora_dpo.recipe.loading import load_recipe
from lora_dpo.recipe.meaning import changed_meaning
from lora_dpo.recipe.run_folder import RunFolder
from lora_dpo.recipe.schema import Recipe
from lora_dpo.recipe.stages import check_sft_is_done, sft_run, stage_recipe


def recipe(**sections: dict[str, Any]) -> Recipe:
    values: dict[str, dict[str, Any]] = {"model": {"name": "tiny"}, "run": {"name": "r"}, "sft": {"path": "a.csv"}}
    for section, keys in sections.items():
        values[section] = {**values.get(section, {}), **keys}
    return Recipe.model_validate(values)


def test_the_sft_stage_has_a_run_and_a_schedule_of_its_own() -> None:
    asked = recipe(
        sft={"epochs": 2, "learning_rate": 1e-3, "max_steps": 7, "trl": {"loss_type": "dft"}},
        train={
            "epochs": 5,
            "max_steps": 9,
            "weight": "group",
            "trl": {"sync_ref_model": False},
            "global_batch_size": 4,
        },
    )
    stage = stage_recipe(asked, "sft")
    assert RunFolder.of(stage).path == sft_run(asked).path == sft_run(stage).path == Path("runs/r-sft")
    assert stage.run.stage == "sft"
    train = stage.train
    assert (train.epochs, train.learning_rate, train.max_steps, train.global_batch_size) == (2, 1e-3, 7, 4)
    assert (train.weight, train.trl) == ("pair", {"loss_type": "dft"})
    assert stage_recipe(stage, "sft") == stage
    assert stage_recipe(asked, "dpo").train == asked.train


def test_the_dpo_stage_begins_with_the_sft_run_unless_it_is_told_otherwise() -> None:
    assert stage_recipe(recipe(), "dpo").adapter.init_from == "runs/r-sft"
    assert stage_recipe(recipe(adapter={"init_from": "org/other"}), "dpo").adapter.init_from == "org/other"
    assert stage_recipe(recipe(sft={"path": None}), "dpo").adapter.init_from is None
    whole = stage_recipe(recipe(adapter={"method": "full"}), "dpo")
    assert (whole.model.name, whole.adapter.init_from) == ("runs/r-sft/model", None)
    for stage in (stage_recipe(recipe(), "dpo"), whole):
        assert stage_recipe(stage, "dpo") == stage
        with pytest.raises(UserError, match="begins with runs/r-sft.*, where no SFT stage has gone through"):
            check_sft_is_done(stage)
    check_sft_is_done(stage_recipe(recipe(sft={"path": None}), "dpo"))


def test_the_dpo_stage_goes_on_once_the_sft_run_has_its_adapter(tmp_path: Path) -> None:
    stage = stage_recipe(recipe(run={"folder": str(tmp_path)}), "dpo")
    (tmp_path / "r-sft" / "adapter").mkdir(parents=True)
    check_sft_is_done(stage)


def test_folds_begin_with_the_sft_run_of_the_whole_recipe() -> None:
    asked = stage_recipe(recipe(evaluation={"folds": 3}), "dpo")
    words = fold_overrides(asked)[1]
    assert "adapter.init_from=runs/r-sft" in words
    assert "run.name=fold-2" in words


@pytest.mark.parametrize(
    ("sections", "stage", "message"),
    [
        ({"sft": {"path": None}}, "sft", "no SFT stage: sft.path is null"),
        ({"evaluation": {"folds": 3}}, "sft", "evaluation.folds 3 is cross-validation of the DPO stage"),
        ({"adapter": {"init_from": "org/other"}}, "sft", "adapter.init_from is org/other, but the SFT stage begins"),
        ({"run": {"stage": "sft"}}, "dpo", "the recipe of an SFT run, not of a DPO stage"),
        ({"sft": {"path": None}, "adapter": {"init_mode": "merge"}}, "dpo", "there is no adapter to merge"),
        (
            {"adapter": {"method": "full"}, "dpo": {"reference_model": "base"}},
            "dpo",
            "the SFT stage has trained the whole model, base included",
        ),
    ],
)
def test_what_cannot_be(sections: dict[str, Any], stage: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        stage_recipe(recipe(**sections), stage)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"adapter": {"init_mode": "merge", "method": "qlora"}}, "4-bit weights cannot take an adapter without loss"),
        ({"adapter": {"init_mode": "merge", "dora": True}}, "init_mode merge saves the sum of two updates"),
        (
            {"adapter": {"init_mode": "merge"}, "dpo": {"reference_model": "base"}},
            "reference_model base does not go with adapter.init_mode merge",
        ),
        ({"dpo": {"reference": "base"}}, "which model is the reference: reference_model=base"),
        ({"sft": {"path": []}}, "names no data"),
    ],
)
def test_what_does_not_go_together(sections: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        recipe(**sections)


def test_a_misspelt_key_is_refused_with_the_right_one(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text("model: {name: tiny}\nsft: {path: a.csv, colums: {prompt: Q, answer: A}}\nrun: {name: r}\n")
    with pytest.raises(UserError, match=r"r.yaml:2: unknown key 'sft.colums'. Did you mean 'sft.columns'\?"):
        load_recipe(file)


def test_each_stage_has_keys_that_leave_it_as_it_is() -> None:
    sft, dpo = (stage_recipe(recipe(), stage) for stage in ("sft", "dpo"))
    other = {"dpo": {"beta": 0.3}, "data": {"path": "b.csv"}, "sft": {"path": "a.csv", "epochs": 3}}
    changed = {stage: stage_recipe(recipe(**other), stage) for stage in ("sft", "dpo")}
    assert changed_meaning(sft, changed["sft"]) == ["sft.epochs: 1.0 -> 3.0", "train.epochs: 1.0 -> 3.0"]
    lines = changed_meaning(dpo, changed["dpo"])
    assert [line.partition(":")[0] for line in lines] == ["data.path", "dpo.beta"]
