from __future__ import annotations

import json
from pathlib import Path

import pytest

from lora_dpo.errors import UserError
from lora_dpo.evaluation.asked import Asked, ask
from tests.evaluation.folders import adapter, made, model
from tests.machine import read_only


@pytest.fixture(autouse=True)
def _work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a finished run `runs/small`, an adapter, a model and two files in the working directory."""
    monkeypatch.chdir(tmp_path)
    made(Path("runs/small"))
    adapter(Path("tuned"), "org/base")
    model(Path("whole"))
    Path("facts.jsonl").touch()
    Path("more.csv.gz").touch()


def written(asked: Asked) -> None:
    """Leaves a report as if the evaluation had been made."""
    asked.output.path.mkdir(parents=True, exist_ok=True)
    asked.output.report_json.write_text(json.dumps({"subject": {**asked.identity(), "base": "org/base"}}))


@pytest.mark.parametrize(
    ("word", "data", "place"),
    [
        ("runs/small", None, "runs/small"),
        ("runs/small", "facts.jsonl", "runs/small/evaluation/facts"),
        ("runs/small", "bundled/misconceptions", "runs/small/evaluation/misconceptions"),
        ("runs/small", "org/pairs", "runs/small/evaluation/org--pairs"),
        ("runs/small", "[facts.jsonl, {path: more.csv.gz}]", "runs/small/evaluation/facts+more"),
        ("runs/small/checkpoints/step-2", None, "runs/small/evaluation/step-2"),
        ("runs/small/checkpoints/step-2", "facts.jsonl", "runs/small/evaluation/step-2-on-facts"),
        ("tuned", "facts.jsonl", "evaluations/tuned-on-facts"),
    ],
)
def test_where_the_results_go(word: str, data: str | None, place: str) -> None:
    asked = ask(word, data=data)
    assert asked.output.path.resolve() == Path(place).resolve()
    assert asked.is_own_report == (word == "runs/small" and data is None)
    assert ask(word, data=data, output="else/where").output.path == Path("else/where")


def test_the_recipe_is_the_run_s_or_made_of_defaults() -> None:
    own = ask("runs/small", overrides=["evaluation.samples=7"]).recipe
    assert (own.dpo.max_length, own.evaluation.samples, own.adapter.method) == (256, 7, "lora")
    strange = ask("tuned", data="facts.jsonl", overrides=["model.template=plain"]).recipe
    assert (strange.dpo.max_length, strange.model.name, strange.model.revision) == (1024, "org/base", "v2")
    assert (strange.model.template, strange.adapter.method, strange.run.name) == ("plain", "lora", "tuned")
    whole = ask("whole", base="org/base", data="facts.jsonl").recipe
    assert (whole.adapter.method, whole.model.name, whole.run.name) == ("full", "org/base", "whole")


def test_what_was_trained_elsewhere_needs_a_test_set() -> None:
    with pytest.raises(
        UserError, match=r"^tuned has no held-out data of its own.*\nName a test set: --data FILE_OR_HUB"
    ):
        ask("tuned")
    asked = ask("tuned", needs_test_set=False)
    assert (asked.data, asked.output.path) == (None, Path("evaluations/tuned"))


def test_a_run_knows_its_base() -> None:
    with pytest.raises(UserError, match="--base whole has no meaning for runs/small, which was trained on org/base"):
        ask("runs/small", base="whole")


def test_results_of_something_else_are_not_overwritten() -> None:
    written(ask("tuned", data="facts.jsonl", output="results"))
    assert ask("tuned", data="facts.jsonl", output="results").output.path == Path("results")
    for other in ({"word": "tuned", "data": "more.csv.gz"}, {"word": "runs/small", "data": "facts.jsonl"}):
        with pytest.raises(UserError, match=r"results holds the results of another evaluation\.\n.*--output FOLDER"):
            ask(**other, output="results")
    Path("results/report.json").write_text("[]")
    with pytest.raises(UserError, match="results holds the results of another evaluation"):
        ask("tuned", data="facts.jsonl", output="results")


def test_a_run_is_not_overwritten() -> None:
    assert ask("runs/small", output="runs/../runs/small").is_own_report
    for word, data in (
        ("tuned", "facts.jsonl"),
        ("runs/small", "facts.jsonl"),
        ("runs/small/checkpoints/step-2", None),
    ):
        with pytest.raises(UserError, match="runs/small is a run, so it cannot hold the results of something else"):
            ask(word, data=data, output="runs/small")
    with pytest.raises(UserError, match=r"facts\.jsonl is a file, so it cannot become a folder of results"):
        ask("tuned", data="facts.jsonl", output="facts.jsonl/below")


def test_a_run_of_somebody_else_needs_another_folder() -> None:
    with read_only(Path("runs/small")):
        with pytest.raises(UserError, match=r"runs/small may not be written to\.\n.*--output FOLDER"):
            ask("runs/small")
        assert ask("runs/small", output="mine").output.path == Path("mine")
