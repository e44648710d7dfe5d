"""Sweeps: what is run, and the table that compares it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lora_dpo.cluster.sweep import (
    compare,
    parse_axes,
    read_definition,
    runs_of,
    sweep_folder,
    variants,
    write_definition,
)
from lora_dpo.errors import UserError
from lora_dpo.recipe.run_folder import RunFolder
from lora_dpo.recipe.schema import Recipe


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """A recipe in the working directory."""
    monkeypatch.chdir(tmp_path)
    return Recipe.model_validate({"model": {"name": "m"}, "run": {"name": "mine"}})


def finished(run: RunFolder, mc1: float, margin: float) -> None:
    """Writes a report with what is compared."""
    run.path.mkdir(parents=True)

    def found(after: float) -> dict:
        before = 0.25
        return {"before": before, "after": after, "difference": after - before, "ci95": [0.01, 0.2], "p": 0.02, "n": 40}

    report = {"verdict": "Better.", "multiple_choice": {"mc1": found(mc1)}, "preference": {"margin": found(margin)}}
    run.report_json.write_text(
        json.dumps({**report, "generation": {"greedy": {"tokens": found(3.0)}, "judges": []}, "sft": None})
    )


def test_commas_within_brackets_part_no_values() -> None:
    assert parse_axes(["dpo.loss=sigmoid,[sigmoid,sft],{a: 1,b: 2}", "dpo.beta=0.1, 0.2"]) == {
        "dpo.loss": ["sigmoid", "[sigmoid,sft]", "{a: 1,b: 2}"],
        "dpo.beta": ["0.1", "0.2"],
    }


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["dpo.beta"], "is not section.key=v1,v2"),
        (["dpo.beta=0.1,,0.2"], "is not section.key=v1,v2"),
        (["dpo.beta=0.1"], "asks for 1 run."),
        (["run.seed=" + ",".join(map(str, range(65)))], "asks for 65 runs"),
        (["dpo.beta=1,2", "dpo.beta=3,4"], "names a key twice"),
        (["slurm.nodes=1,2"], "nothing to compare runs by"),
    ],
)
def test_what_is_no_sweep_is_refused(words: list[str], said: str) -> None:
    with pytest.raises(UserError) as error:
        parse_axes(words)
    assert said in str(error.value)


def test_each_combination_is_a_run_with_a_name_that_a_run_may_have(recipe: Recipe) -> None:
    found = variants(recipe, {"dpo.beta": ["0.1", "0.2"], "data.path": ["a/b.jsonl", "[x, y]"]})
    assert [variant.name for variant in found] == [
        "mine-beta-0.1-path-a-b.jsonl",
        "mine-beta-0.1-path-x-y",
        "mine-beta-0.2-path-a-b.jsonl",
        "mine-beta-0.2-path-x-y",
    ]
    assert found[1].overrides == ("dpo.beta=0.1", "data.path=[x, y]", "run.name=mine-beta-0.1-path-x-y")
    with pytest.raises(UserError, match="two runs would be named mine-path-a-b"):
        variants(recipe, {"data.path": ["a/b", "a:b"]})


def test_the_table_has_what_was_measured_and_who_has_no_report_yet(recipe: Recipe) -> None:
    axes = {"dpo.beta": ["0.1", "0.2", "0.3"]}
    folder, found = sweep_folder(recipe, axes), variants(recipe, axes)
    assert folder == Path("runs/mine-sweep-beta")
    write_definition(folder, recipe, axes, found)
    finished(RunFolder(Path("runs/mine-beta-0.1")), 0.30, 1.5)
    finished(RunFolder(Path("runs/mine-beta-0.2")), 0.35, 2.5)
    sweep = compare(folder)
    assert [entry["complete"] for entry in sweep["runs"]] == [True, True, False]
    assert sweep["runs"][1]["results"]["MC1"]["after"] == 0.35
    assert (folder / "sweep.md").read_text().splitlines()[4:9] == [
        "| dpo.beta | MC1 | margin, nats | run |",
        "| --- | --- | --- | --- |",
        "| 0.1 | 30.0% (+5.0; +1.0 to +20.0) | +1.50 (+1.25; +0.01 to +0.20) | mine-beta-0.1 |",
        "| 0.2 | 35.0% (+10.0; +1.0 to +20.0) | +2.50 (+2.25; +0.01 to +0.20) | mine-beta-0.2 |",
        "| 0.3 | - | - | mine-beta-0.3 (no report yet) |",
    ]
    assert "looks better than it is" in (folder / "sweep.md").read_text()
    assert json.loads((folder / "sweep.json").read_text()) == sweep
    assert compare(folder) == sweep  # it may be made again
    assert [run.path.name for run in runs_of(folder)] == ["mine-beta-0.1", "mine-beta-0.2", "mine-beta-0.3"]


def test_a_folder_that_is_no_sweep_leads_to_one(recipe: Recipe) -> None:
    axes = {"dpo.beta": ["0.1", "0.2"]}
    write_definition(sweep_folder(recipe, axes), recipe, axes, variants(recipe, axes))
    with pytest.raises(UserError, match="runs/mine-swep-beta is no sweep") as error:
        read_definition(Path("runs/mine-swep-beta"))
    assert "Did you mean 'runs/mine-sweep-beta'?" in str(error.value)
