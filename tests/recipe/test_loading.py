from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_dpo import resources
from lora_dpo.errors import UserError
from lora_dpo.recipe.loading import all_keys, find_recipe, load_recipe, to_yaml, with_overrides
from lora_dpo.recipe.schema import Recipe
from lora_dpo.recipe.yaml_source import dump

SMALLEST = "model: {name: org/model}\nrun: {name: first}\n"
SHIPPED = sorted(file.stem for file in resources.folder("recipes").glob("*.yaml"))


@pytest.fixture
def recipe(tmp_path: Path):
    """Returns a function that loads a recipe from text; the file is `recipe.yaml` in the temporary folder."""

    def load(text: str = SMALLEST, *overrides: str) -> Recipe:
        file = tmp_path / "recipe.yaml"
        file.write_text(text, encoding="utf-8")
        return load_recipe(file, overrides)

    return load


@pytest.fixture
def refusal(recipe, tmp_path: Path):
    """Returns a function from a recipe's text to the message that refuses it, without the folder."""

    def message(text: str, *overrides: str) -> str:
        with pytest.raises(UserError) as caught:
            recipe(text, *overrides)
        return str(caught.value).replace(f"{tmp_path}/", "")

    return message


def test_the_smallest_recipe_has_every_default(recipe) -> None:
    loaded = recipe()
    assert (loaded.model.name, loaded.run.name) == ("org/model", "first")
    assert loaded == Recipe.model_validate({"model": {"name": "org/model"}, "run": {"name": "first"}})
    assert loaded.dpo.loss == ["sigmoid"]
    assert loaded.slurm.time.total_seconds() == 4 * 3600


def test_a_section_with_all_keys_commented_out_means_the_defaults(recipe) -> None:
    assert recipe(SMALLEST + "train:\n  # epochs: 3\n") == recipe()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trian: {}\n", "recipe.yaml:3: unknown key 'trian'. Did you mean 'train'?"),
        ("\ntrain:\n  epoch: 3\n", "recipe.yaml:5: unknown key 'train.epoch'. Did you mean 'train.epochs'?"),
        ("train:\n  beta: 3\n", "recipe.yaml:4: unknown key 'train.beta'. Did you mean 'dpo.beta'?"),
        ("train: {LEARNING_RATE: 1}\n", "unknown key 'train.LEARNING_RATE'. Did you mean 'train.learning_rate'?"),
        (
            "hub: {xyz: 1}\n",
            "recipe.yaml:3: unknown key 'hub.xyz'. Known: repo, private, what, tag, base_model, license, template.",
        ),
        ("data: {split: {tst: 0.1}}\n", "unknown key 'data.split.tst'. Did you mean 'data.split.test'?"),
        ("data: {split: {fodls: 5}}\n", "unknown key 'data.split.fodls'. Did you mean 'data.split.folds'?"),
        ("data: {split: {k: 5}}\n", "unknown key 'data.split.k'. Known: test, validation, seed, folds, fold, like."),
        ("folds: 5\n", "recipe.yaml:3: unknown key 'folds'. Did you mean 'data.split.folds'?"),
        ("data: {pairs: {smaple: 3}}\n", "unknown key 'data.pairs.smaple'. Did you mean 'data.pairs.sample'?"),
        (
            "data:\n  path:\n  - a\n  - {path: b, wieght: 2}\n",
            "recipe.yaml:6: unknown key 'data.path.1.wieght'. Did you mean 'data.path.1.weight'?",
        ),
        ("notes:\n", "recipe.yaml:3: unknown key 'notes'. Known: model, adapter, data,"),
    ],
)
def test_an_unknown_key_is_refused_with_its_line_and_the_nearest_key(refusal, text: str, message: str) -> None:
    assert message in refusal(SMALLEST + text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {epochs: many}\n", "recipe.yaml:3: train.epochs: input should be a valid number"),
        ("train: {epochs: [1]}\n", "train.epochs: input should be a valid number, not [1]"),
        ("train: {global_batch_size: 1.5}\n", "train.global_batch_size: input should be a valid integer"),
        (
            "train: {global_batch_size: 0}\n",
            "train.global_batch_size: input should be greater than or equal to 1, not 0",
        ),
        ("train: {epochs: true}\n", "train.epochs: is not switched on or off, so it cannot be true"),
        (
            "train: {evals_per_epoch: false}\n",
            "train.evals_per_epoch: is not switched on or off, so it cannot be false",
        ),
        ("train: 5\n", "recipe.yaml:3: train: should be a section with keys of its own, not 5"),
        ("train: {learning_rate: .nan}\n", "train.learning_rate: input should be a finite number, not nan"),
        ("train: {learning_rate: .inf}\n", "train.learning_rate: input should be a finite number, not inf"),
        ("dpo: {loss: sigmod}\n", "recipe.yaml:3: dpo.loss: 'sigmod' is not one of 'sigmoid', 'hinge',"),
        ("dpo: {loss: sigmod}\n", "Did you mean 'sigmoid'?"),
        ("dpo: {loss: []}\n", "dpo.loss: is empty. One loss, or several that are added."),
        ("dpo:\n  loss:\n  - ipo\n  - hing\n", "recipe.yaml:6: dpo.loss.1: 'hing' is not one of"),
        ("data: {pairs: bset}\n", "data.pairs: 'bset' is not one of 'best' or 'all'. Did you mean 'best'?"),
        ("data: {path: []}\n", "data.path: names no data; give a file, a folder, a Hub id, or bundled/misconceptions"),
        ("data: {path: ''}\n", "data.path: names no data"),
        ("data: {split: {test: 0.6, validation: 0.4}}\n", "data.split: test 0.6 + validation 0.4 leave nothing"),
        ("data: {split: {folds: 2, fold: 1, validation: 0.5}}\n", "one fold of 2 + validation 0.5 leave nothing"),
        ("data: {split: {folds: 1, fold: 1}}\n", "folds: input should be greater than or equal to 2, not 1"),
        ("data: {split: {folds: 5, fold: 0}}\n", "fold: input should be greater than or equal to 1, not 0"),
        ("data: {split: {folds: 5, fold: 6}}\n", "data.split: there is no fold 6 of 5; folds are counted from 1"),
        ("data: {split: {folds: 5}}\n", "data.split: folds 5 needs fold, which of them is the test split: 1 to 5"),
        ("data: {split: {fold: 2}}\n", "data.split: fold 2 has no meaning without folds, the number of parts"),
        ("data: {split: {folds: true, fold: 1}}\n", "data.split.folds: is not switched on or off"),
        ("slurm: {time: 90}\n", "slurm.time: 90 could be minutes or seconds; write HH:MM:SS"),
        ("adapter: {targets: []}\n", "adapter: targets is empty; name at least one layer, or use all-linear"),
        ("train: {strategy: qlora}\n", "recipe.yaml: train.strategy qlora needs adapter.method qlora"),
        ("train: {trees: of}\n", "recipe.yaml:3: train.trees: 'of' is not one of 'auto', 'on' or 'off'. Did you mean"),
        ("train: {trees: true}\n", "train.trees: True is not one of 'auto', 'on' or 'off'. Known: auto, on, off."),
        ("train: {weight: groups}\n", "train.weight: 'groups' is not one of 'pair' or 'group'. Did you mean 'group'?"),
        ("train: {group_by_prompt: flase}\n", "'flase' is neither true nor false. Did you mean 'false'?"),
        ("train: {tokens_per_micro_batch: 0}\n", "tokens_per_micro_batch: input should be greater than or equal to 1"),
        ("train: {token_per_micro_batch: 9}\n", "Did you mean 'train.tokens_per_micro_batch'?"),
        ("dpo: {reference: cache}\n", "'cache' is not one of 'cached' or 'live'. Did you mean 'cached'?"),
        (
            "train:\n  micro_batch_size: 2\n  tokens_per_micro_batch: 900\n",
            "recipe.yaml:3: train: micro_batch_size and tokens_per_micro_batch both say how a step is cut; set one to",
        ),
    ],
)
def test_a_wrong_value_is_refused_with_its_line_and_what_would_be_right(refusal, text: str, message: str) -> None:
    assert message in refusal(SMALLEST + text)


@pytest.mark.parametrize("name", ["../elsewhere", "a/b", ".hidden", "", "a b"])
def test_a_run_name_cannot_leave_its_folder(refusal, name: str) -> None:
    message = refusal(f"model: {{name: m}}\nrun: {{name: '{name}'}}\n")
    assert f"recipe.yaml:2: run.name: '{name}' cannot be used." in message
    assert "letters, digits" in message


def test_what_is_missing_is_named_and_described(refusal) -> None:
    message = refusal("model: {}\n")
    assert "recipe.yaml:1: 'model.name' is missing. Hub id (org/name), local folder" in message
    assert "recipe.yaml: 'run' is missing. Where the results go." in message
    assert refusal("model:\nrun: {name: x}\n") == "recipe.yaml:1: 'model' is missing. Which model is aligned."


def test_all_mistakes_are_listed_at_once_each_on_its_line(refusal) -> None:
    message = refusal(SMALLEST + "dpo:\n  beta: -1\ntrain:\n  warmpu: 1\n  epochs: x\n", "run.seed=-1")
    lines = message.splitlines()
    assert len(lines) == 4
    assert [line.split(": ")[0] for line in lines] == [
        "recipe.yaml:4",
        "recipe.yaml:7",
        "recipe.yaml:6",
        "command line",
    ]


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("train.learning_rate=1e-5", ("train", "learning_rate"), 1e-5),
        ("train.epochs=2", ("train", "epochs"), 2.0),
        ("train.gradient_checkpointing=true", ("train", "gradient_checkpointing"), True),
        ("train.report_to=wandb", ("train", "report_to"), ["wandb"]),
        ("dpo.loss=[sigmoid, sft]", ("dpo", "loss"), ["sigmoid", "sft"]),
        ("adapter.targets=c_attn", ("adapter", "targets"), ["c_attn"]),
        ("adapter.targets=all-linear", ("adapter", "targets"), "all-linear"),
        ("data.path=/a/b=c.jsonl", ("data", "path"), "/a/b=c.jsonl"),
        ("data.pairs.sample=3", ("data", "pairs", "sample"), 3),
        ("data.pairs={sample: 3}", ("data", "pairs", "sample"), 3),
        ("data.split.test=0.3", ("data", "split", "test"), 0.3),
        ("slurm.partition=gpu", ("slurm", "partition"), "gpu"),
        ("model.revision=", ("model", "revision"), None),
        ("train.trl.dataloader_num_workers=2", ("train", "trl"), {"dataloader_num_workers": 2}),
    ],
)
def test_overrides_have_the_types_of_the_file(recipe, override: str, key: tuple[str, ...], value: Any) -> None:
    loaded: Any = recipe(SMALLEST, override)
    for part in key:
        loaded = getattr(loaded, part)
    assert (loaded, type(loaded)) == (value, type(value))


def test_the_last_override_wins_and_the_rest_of_the_section_stays(recipe) -> None:
    loaded = recipe(SMALLEST + "train: {epochs: 1, warmup: 0.2}\n", "train.epochs=2", "train.epochs=3")
    assert (loaded.train.epochs, loaded.train.warmup) == (3, 0.2)


@pytest.mark.parametrize("written", ["best", "{sample: 2}"])
def test_an_override_below_a_union_replaces_a_word_and_a_section(recipe, written: str) -> None:
    assert recipe(SMALLEST + f"data: {{pairs: {written}}}\n", "data.pairs.sample=3").data.pairs.sample == 3


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epochs", "'train.epochs' is not section.key=value.\nFor example: train.learning_rate=1e-5"),
        ("=3", "'=3' is not section.key=value."),
        ("train..epochs=3", "'train..epochs=3' is not section.key=value."),
        ("--overwrit", "'--overwrit' is not section.key=value."),
        ("train.epochs.x=3", "'train.epochs.x=3': train.epochs is no section."),
        ("model.name=@x", "command line: model.name=@x: not valid YAML: found character '@'"),
        ("train.epoch=3", "command line: train.epoch=3: unknown key 'train.epoch'. Did you mean 'train.epochs'?"),
        ("trian.epochs=3", "command line: trian.epochs=3: unknown key 'trian'. Did you mean 'train'?"),
        ("train.epochs=-3", "command line: train.epochs=-3: train.epochs: input should be greater than 0, not -3"),
        ("data.split.test=0.95", "command line: data.split.test=0.95: data.split: test 0.95 + validation 0.1 leave"),
        ("model.name.x=1", "command line: model.name.x=1: model.name: input should be a valid string"),
        ("train=5", "command line: train=5: train: should be a section with keys of its own, not 5"),
    ],
)
def test_a_bad_override_is_refused_with_its_own_text(refusal, override: str, message: str) -> None:
    assert message in refusal(SMALLEST + "train: {epochs: 1}\n", override)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_recipes_are_found_by_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = resources.folder("recipes") / f"{name}.yaml"
    assert {find_recipe(way) for way in (name, f"{name}.yaml", f"recipes/{name}.yaml", file)} == {file}
    assert load_recipe(name) == load_recipe(file)


def test_a_file_of_ones_own_goes_before_a_shipped_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("quickstart.yaml").write_text(SMALLEST, encoding="utf-8")
    assert load_recipe("quickstart.yaml").run.name == "first"
    Path("quickstart").mkdir()  # a folder of that name is no reason to miss the recipe
    assert load_recipe("quickstart").run.name == "quickstart"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("quickstrat", "There is no recipe quickstrat.\nDid you mean 'quickstart'?"),
        ("recipes/quikstart.yaml", "There is no recipe recipes/quikstart.yaml.\nDid you mean 'quickstart'?"),
        ("min.yaml", "There is no recipe min.yaml.\nDid you mean 'mine.yaml'?"),
        ("zzz", "There is no recipe zzz.\nKnown: "),
        ("folder", "folder is a folder, not a recipe."),
        ("nowhere/mine.yaml", "There is no recipe nowhere/mine.yaml."),
    ],
)
def test_a_misspelt_recipe_leads_to_the_nearest(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(SMALLEST, encoding="utf-8")
    Path("folder").mkdir()
    with pytest.raises(UserError, match=f"^{re.escape(message)}"):
        find_recipe(name)


def test_all_keys_name_every_leaf_once() -> None:
    keys = all_keys()
    assert len(keys) == len(set(keys))
    assert {"model.name", "data.split.test", "data.pairs.sample", "data.pairs", "data.path.weight", "train.trl"} <= set(
        keys
    )
    assert "train" not in keys


small = st.floats(min_value=1e-9, max_value=1e3)
counts = st.integers(min_value=1, max_value=10**6)
names = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "train.learning_rate": small,
    "train.epochs": small,
    "train.max_steps": st.none() | counts,
    "train.warmup": st.floats(min_value=0, max_value=100),
    "train.gradient_checkpointing": st.booleans(),
    "train.report_to": st.lists(names, max_size=2),
    "train.trl": st.dictionaries(
        st.from_regex(r"[a-z_]{1,9}", fullmatch=True), st.booleans() | counts | names, max_size=2
    ),
    "dpo.beta": small,
    "dpo.loss": st.lists(st.sampled_from(["sigmoid", "hinge", "ipo", "sft", "apo_zero"]), min_size=1, max_size=3),
    "adapter.targets": st.just("all-linear") | st.lists(names, min_size=1, max_size=3),
    "data.pairs": st.sampled_from(["best", "all"]) | st.fixed_dictionaries({"sample": counts}),
    "data.path": names
    | st.lists(names | st.fixed_dictionaries({"path": names, "weight": small}), min_size=1, max_size=3),
    "data.split.seed": st.integers(min_value=0, max_value=10**6),
    "model.name": names,
    "model.revision": st.none() | names,
    "slurm.time": st.integers(min_value=3600, max_value=10**6),
    "run.name": st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True),
}


def test_a_commit_that_looks_like_a_number_stays_a_text(recipe) -> None:
    with pytest.raises(UserError, match="input should be a valid string"):
        recipe(SMALLEST, "model.revision=12e4")
    loaded = recipe(SMALLEST, "model.revision='12e4'")
    assert recipe(to_yaml(loaded)).model.revision == "12e4"


@settings(max_examples=60)
@given(st.fixed_dictionaries({}, optional=VALUES))
def test_a_recipe_is_the_same_after_being_written_and_read(tmp_path: Path, values: dict[str, Any]) -> None:
    source, resolved = tmp_path / "recipe.yaml", tmp_path / "resolved.yaml"
    source.write_text(SMALLEST, encoding="utf-8")
    overrides = [f"{key}={dump(value, default_flow_style=True, width=10**6)}" for key, value in values.items()]
    loaded = load_recipe(source, [override.removesuffix("\n").removesuffix("\n...") for override in overrides])
    for key in values.keys() & {"train.learning_rate", "dpo.loss", "model.name", "adapter.targets"}:
        section, name = key.split(".")
        assert getattr(getattr(loaded, section), name) == values[key]
    resolved.write_text(to_yaml(loaded), encoding="utf-8")
    assert load_recipe(resolved) == loaded
    assert yaml.safe_load(to_yaml(loaded)).keys() == Recipe.model_fields.keys()
    assert Recipe.model_validate(yaml.safe_load(to_yaml(loaded))) == loaded  # with a YAML 1.1 reader as well


def test_values_of_a_recipe_are_replaced_and_checked_like_those_of_a_file(recipe) -> None:
    loaded = recipe(f"{SMALLEST}evaluation: {{samples: 5}}\n")
    changed = with_overrides(loaded, ["evaluation.batch_size=2", "data.pairs.sample=3"])
    assert (changed.evaluation.samples, changed.evaluation.batch_size, changed.data.pairs.sample) == (5, 2, 3)
    assert with_overrides(loaded, []) == loaded
    with pytest.raises(UserError) as caught:
        with_overrides(loaded, ["evaluation.sampels=2", "train.epochs=0"])
    assert str(caught.value).splitlines() == [
        "command line: train.epochs=0: train.epochs: input should be greater than 0, not 0",
        "command line: evaluation.sampels=2: unknown key 'evaluation.sampels'. Did you mean 'evaluation.samples'?",
    ]
