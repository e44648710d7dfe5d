from __future__ import annotations

import pytest

from lora_dpo.errors import UserError
from lora_dpo.recipe.for_evaluation import recipe_of_run, recipe_of_stranger
from lora_dpo.recipe.schema import DataSection, ModelSection, Recipe, Source

TRAINED = Recipe.model_validate(
    {
        "model": {"name": "org/base", "template": "plain"},
        "data": {"path": "own.csv", "pairs": "all", "columns": {"prompt": "q", "chosen": "a", "rejected": "b"}},
        "dpo": {"beta": 0.3, "max_length": 77},
        "run": {"name": "mine", "seed": 4},
    }
)


def test_a_run_is_measured_as_it_was_trained() -> None:
    assert recipe_of_run(TRAINED, None, []) == TRAINED
    changed = recipe_of_run(TRAINED, None, ["evaluation.samples=3", "evaluation.judges=[org/judge]"])
    assert (changed.evaluation.samples, changed.evaluation.judges) == (3, ["org/judge"])
    assert changed.model_copy(update={"evaluation": TRAINED.evaluation}) == TRAINED


def test_another_test_set_is_all_test_and_read_by_the_defaults() -> None:
    changed = recipe_of_run(TRAINED, "other.jsonl", ["data.pairs=all"])
    assert changed.data == DataSection(path=[Source(path="other.jsonl", use="test")], pairs="all")
    assert (changed.model, changed.dpo, changed.run) == (TRAINED.model, TRAINED.dpo, TRAINED.run)


@pytest.mark.parametrize(
    ("data", "sources"),
    [
        ("org/pairs", [Source(path="org/pairs", use="test")]),
        ("a, b.csv", [Source(path="a, b.csv", use="test")]),
        ("{path: org/pairs, hub_split: test}", [Source(path="org/pairs", hub_split="test", use="test")]),
        ("[a.csv, {path: b.csv, use: train}]", [Source(path="a.csv", use="test"), Source(path="b.csv", use="test")]),
    ],
)
def test_a_test_set_is_written_as_in_a_recipe(data: str, sources: list[Source]) -> None:
    assert recipe_of_run(TRAINED, data, []).data.sources() == sources


def test_what_was_trained_elsewhere_gets_the_defaults() -> None:
    base = ModelSection(name="org/base", revision="v1")
    recipe = recipe_of_stranger("adapter", base, "full", "t.csv", ["model.dtype=float32", "dpo.beta=0.5"])
    assert recipe.model == ModelSection(name="org/base", revision="v1", dtype="float32")
    assert (recipe.adapter.method, recipe.run.name, recipe.dpo.beta) == ("full", "adapter", 0.5)
    assert recipe.evaluation == Recipe.model_validate({"model": {"name": "m"}, "run": {"name": "r"}}).evaluation


@pytest.mark.parametrize(
    ("data", "override", "message"),
    [
        (None, "train.epochs=2", "train.epochs cannot be set for an evaluation of a run, which is measured as it was"),
        (None, "evaluation.folds=2", "evaluation.folds cannot be set for an evaluation of a run"),
        (None, "model.dtype=float32", "model.dtype cannot be set for an evaluation of a run"),
        ("t.csv", "data.split.test=0.5", "data.split.test cannot be set for an evaluation of a run"),
        (None, "data.pairs=all", r"\(it says how a test set is read, and --data names none\)"),
        (None, "evaluation.sampels=2", "Did you mean 'evaluation.samples'?"),
        (None, "evaluation", "'evaluation' is not section.key=value"),
        ("{path: a/b, hub_splt: c}", "evaluation.samples=2", r"unknown key 'data\.path\.0\.hub_splt'"),
        ("{path: a/b", "evaluation.samples=2", "--data: not valid YAML"),
    ],
)
def test_what_would_measure_something_else_is_refused(data: str | None, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        recipe_of_run(TRAINED, data, [override])


def test_the_refusal_lists_what_can_be_set() -> None:
    with pytest.raises(UserError) as caught:
        recipe_of_stranger("x", ModelSection(name="m"), "lora", None, ["run.seed=3"])
    assert caught.value.fix.startswith("What can be set: evaluation.*, model.revision, model.dtype,")
    assert "data." not in caught.value.fix
