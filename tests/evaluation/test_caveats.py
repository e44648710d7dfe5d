from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lora_dpo.evaluation.caveats import caveats_of_data, caveats_of_result
from tests.evaluation.test_report import COST, GENERATION, comparison
from tests.small import small_recipe

SPLITS = {"splits": {"train": {"groups": 9}, "test": {"groups": 4}}, "near_duplicates": 0}
NOTHING: dict[str, Any] = {"multiple_choice": None, "preference": None, "generation": None, "cost": None}


def test_trained_on_other_questions_of_the_same_data(tmp_path: Path) -> None:
    recipe = small_recipe("org/model", tmp_path)
    (said,) = caveats_of_data(recipe, SPLITS)
    assert said.startswith("It was trained on 9 other questions of the same data (bundled/misconceptions).")


def test_a_test_set_of_its_own_is_no_caveat(tmp_path: Path) -> None:
    sources = [{"path": "a.jsonl", "use": "train"}, {"path": "b.jsonl", "use": "test"}]
    recipe = small_recipe("org/model", tmp_path, data={"path": sources})
    assert list(caveats_of_data(recipe, SPLITS)) == []


@pytest.mark.parametrize(("count", "begins"), [(1, "1 question is nearly"), (3, "3 questions are nearly")])
def test_near_duplicates(count: int, begins: str, tmp_path: Path) -> None:
    said = list(caveats_of_data(small_recipe("org/model", tmp_path), {**SPLITS, "near_duplicates": count}))
    assert said[1].startswith(begins)


def test_few_questions() -> None:
    few = {**comparison(0.1, 0.2, (0.0, 0.2)), "n": 99}
    assert list(caveats_of_result({**NOTHING, "preference": {"accuracy": few}})) == [
        "99 held-out questions are few: mind the intervals, not the differences."
    ]
    assert list(caveats_of_result({**NOTHING, "preference": {"accuracy": {**few, "n": 100}}})) == []


@pytest.mark.parametrize(("after", "count"), [(20.9, 0), (21.1, 1)])
def test_forgetting(after: float, count: int) -> None:
    said = list(caveats_of_result({**NOTHING, "cost": {**COST, "perplexity_after": after}}))
    assert len(said) == count
    assert all("perplexity +5.5 %" in one for one in said)


@pytest.mark.parametrize(
    ("after", "ci95", "said"),
    [
        (20.0, (1.0, 15.0), "Answers became much longer"),
        (20.0, (-1.0, 15.0), None),
        (11.0, (0.5, 1.5), None),
        (5.0, (-7.0, -1.0), "Answers became much shorter"),
        (5.0, (-7.0, 1.0), None),
    ],
)
def test_answers_of_another_length(after: float, ci95: tuple[float, float], said: str | None) -> None:
    tokens = comparison(10.0, after, ci95)
    found = list(caveats_of_result({**NOTHING, "generation": {**GENERATION, "greedy": {"tokens": tokens}}}))
    assert [caveat.partition(";")[0] for caveat in found] == ([] if said is None else [said])
