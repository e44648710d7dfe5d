from __future__ import annotations

from pathlib import Path

import pytest

from lora_dpo.errors import UserError
from lora_dpo.recipe.folds import check_is_one_training, fold_overrides, fold_runs
from lora_dpo.recipe.loading import load_recipe
from lora_dpo.recipe.meaning import changed_meaning
from lora_dpo.recipe.run_folder import RunFolder

THREE = ["evaluation.folds=3", "run.folder=my runs", "run.name=tuned"]


def test_every_fold_is_a_run_of_its_own_that_trains_on_the_others() -> None:
    recipe = load_recipe("quickstart", THREE)
    own = [load_recipe("quickstart", [*THREE, *words]) for words in fold_overrides(recipe)]
    assert [(each.data.split.folds, each.data.split.fold) for each in own] == [(3, 1), (3, 2), (3, 3)]
    assert [RunFolder.of(each) for each in own] == fold_runs(recipe)
    assert fold_runs(recipe)[2].path == Path("my runs/tuned/fold-3")
    for each in own:
        check_is_one_training(each)


def test_a_launcher_starts_one_training() -> None:
    with pytest.raises(UserError) as caught:
        check_is_one_training(load_recipe("quickstart", THREE))
    assert "evaluation.folds 3 stands for 3 trainings" in str(caught.value)
    assert "add: evaluation.folds=null data.split.folds=3 data.split.fold=1" in str(caught.value)


def test_both_ways_of_asking_at_once() -> None:
    with pytest.raises(UserError, match="evaluation.folds 3 trains every fold, and data.split.fold names one"):
        load_recipe("quickstart", [*THREE, "data.split.folds=3", "data.split.fold=1"])


def test_folds_are_not_gone_on_with_as_one_training() -> None:
    one, three = load_recipe("quickstart"), load_recipe("quickstart", ["evaluation.folds=3"])
    assert changed_meaning(one, three) == ["evaluation.folds: null -> 3"]
    assert changed_meaning(three, one) == ["evaluation.folds: 3 -> null"]
