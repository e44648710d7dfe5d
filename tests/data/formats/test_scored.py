from __future__ import annotations

import pytest

from lora_dpo.data.formats.base import BadRowError, Options
from lora_dpo.data.formats.registry import recognise
from lora_dpo.data.formats.scored import SCORED
from lora_dpo.recipe.schema import SamplePairs


def row(*scores: object, key: str = "overall_score", **more) -> dict:
    completions = [
        {"model": f"m{i}", "response": f"answer {i}", "critique": "...", key: score} for i, score in enumerate(scores)
    ]
    return {"source": "evol", "instruction": "Explain.", "models": [], "completions": completions} | more


def answers(values: dict, **options) -> list[tuple[str, str]]:
    assert recognise([values], "x") is SCORED
    made = SCORED.convert(values, Options(**options))
    return [(one.chosen[-1], one.rejected[-1]) for one in made]


def test_best_against_worst():
    assert answers(row(5, 7.5, 2, 7)) == [("1", "2")]
    (made,) = SCORED.convert(row(1, 2), Options())
    assert made.prompt == ({"role": "user", "content": "Explain."},)
    assert (made.chosen, made.rejected) == ("answer 1", "answer 0")


def test_all_pairs_with_different_scores():
    assert answers(row(5, 7, 5), pairs="all") == [("1", "0"), ("1", "2")]
    assert answers(row(1, 2, 3), pairs="all") == [("1", "0"), ("2", "0"), ("2", "1")]


def test_ties_make_no_pair():
    assert answers(row(4, 4, 4), pairs="all") == answers(row(4, 4)) == answers(row(4)) == answers(row()) == []


def test_margin():
    assert answers(row(5, 7, 2), pairs="all", min_margin=3) == [("0", "2"), ("1", "2")]
    assert answers(row(5, 7), min_margin=2) == [("1", "0")]
    assert answers(row(5, 7), min_margin=2.1) == []


def test_sample():
    drawn = answers(row(1, 2, 3, 4), pairs=SamplePairs(sample=2))
    assert len(drawn) == 2
    assert set(drawn) < set(answers(row(1, 2, 3, 4), pairs="all"))


@pytest.mark.parametrize("key", ["fine-grained_score", "overall_score", "score", "rating"])
def test_names_of_scores(key):
    assert answers(row(1, 2, key=key)) == [("1", "0")]


def test_fine_grained_scores_come_first():
    values = row(1, 2)
    for completion, score in zip(values["completions"], (4.5, 3.0), strict=True):
        completion["fine-grained_score"] = score
    assert answers(values) == [("0", "1")]


def test_scores_that_are_no_numbers_are_left_out():
    assert answers(row("N/A", "2", 3, None, float("nan"), True), pairs="all") == [("2", "1")]
    assert answers(row("N/A", "N/A")) == []


def test_prompt_column_and_system():
    values = row(1, 2, system="Be kind.")
    values["prompt"] = values.pop("instruction")
    (made,) = SCORED.convert(values, Options())
    assert made.prompt == ({"role": "system", "content": "Be kind."}, {"role": "user", "content": "Explain."})


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (row(1, 2, key="stars"), "no completion has a score; known are fine-grained_score, overall_score"),
        (row(1, 2) | {"completions": ["a", "b"]}, "column 'completions' is not a list of objects"),
        (row(1, 2) | {"completions": None}, "column 'completions' is null"),
        (row(1, 2) | {"instruction": 7}, "column 'instruction' is 7, not a list of messages"),
        (row(1, 2) | {"completions": [{"score": 1}]}, "column 'completions', item 1, key 'response' is None, not text"),
    ],
)
def test_bad_rows(values, reason):
    with pytest.raises(BadRowError) as caught:
        SCORED.convert(values, Options())
    assert str(caught.value).startswith(reason)
