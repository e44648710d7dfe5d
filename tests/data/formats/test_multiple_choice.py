from __future__ import annotations

import json

import pytest

from lora_dpo.data.formats.base import BadRowError, Options
from lora_dpo.data.formats.multiple_choice import MULTIPLE_CHOICE
from lora_dpo.data.formats.registry import recognise

AUTHORS = {
    "question": "Can you see the Great Wall from the Moon?",
    "mc0_targets": {"No, you cannot": 1, "Yes, easily": 0},
    "mc1_targets": {"No, you cannot": 1, "Yes, easily": 0, " With luck.": 0, "": 0},
    "mc2_targets": {"Nobody can; it is too far": 1, "No, you cannot": 1, "": 0, "Yes, easily": 0, " With luck.": 0},
}


def as_lists(targets: dict[str, int]) -> dict[str, list]:
    return {"choices": list(targets), "labels": list(targets.values())}


HUB = {
    "question": AUTHORS["question"],
    "mc1_targets": as_lists(AUTHORS["mc1_targets"]),
    "mc2_targets": as_lists(AUTHORS["mc2_targets"]),
}


def test_recognised():
    assert recognise([AUTHORS], "x") is recognise([HUB], "x") is MULTIPLE_CHOICE


@pytest.mark.parametrize(("row", "best_incorrect"), [(AUTHORS, "Yes, easily"), (HUB, "")])
def test_answers_stay_as_they_are(row, best_incorrect):
    found = MULTIPLE_CHOICE.answers(row)
    assert found.prompt == ({"role": "user", "content": AUTHORS["question"]},)
    assert found.correct == ["Nobody can; it is too far", "No, you cannot"]
    assert found.incorrect == ["", "Yes, easily", " With luck."]
    assert (found.best, found.best_incorrect, found.category) == ("No, you cannot", best_incorrect, "")
    assert MULTIPLE_CHOICE.answers(row | {"category": "Myths"}).category == "Myths"


def test_choices_may_be_repeated_and_mixed():
    mixed = {"choices": ["b", "a", "b", "c", "a"], "labels": [0, 1, 0, 1, 1]}
    row = HUB | {"mc2_targets": mixed, "mc1_targets": {"choices": ["a", "b"], "labels": [1, 0]}}
    found = MULTIPLE_CHOICE.answers(row)
    assert (found.correct, found.incorrect) == (["a", "c", "a"], ["b", "b"])


def test_an_answer_may_be_called_choices():
    row = {"question": "?", "mc1_targets": {"choices": 1, "labels": 0}, "mc2_targets": {"choices": 1, "labels": 0}}
    found = MULTIPLE_CHOICE.answers(row)
    assert (found.correct, found.incorrect) == (["choices"], ["labels"])


def test_pairs_leave_empty_answers_out():
    made = MULTIPLE_CHOICE.convert(AUTHORS, Options(pairs="all"))
    assert [(one.chosen, one.rejected) for one in made] == [
        (better, worse)
        for better in ("Nobody can; it is too far", "No, you cannot")
        for worse in ("Yes, easily", " With luck.")
    ]


def test_the_best_pair():
    for row in (AUTHORS, HUB):
        (made,) = MULTIPLE_CHOICE.convert(row, Options(pairs="best"))
        assert (made.chosen, made.rejected) == ("No, you cannot", "Yes, easily")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"mc2_targets": None}, "column 'mc2_targets' is null"),
        ({"mc2_targets": ["a"]}, "column 'mc2_targets' is ['a'], not an object with answers and labels"),
        (
            {"mc2_targets": {"choices": ["a", "b"], "labels": [1]}},
            "column 'mc2_targets' has 2 choices, but as labels [1]",
        ),
        ({"mc2_targets": {"choices": ["a"], "lables": [1]}}, "column 'mc2_targets' has 1 choices, but as labels None"),
        ({"mc2_targets": {"a": 1, "b": 2}}, "column 'mc2_targets', item 2 has the label 2; known are 0 and 1"),
        ({"mc2_targets": {"a": "1"}}, "column 'mc2_targets', item 1 has the label '1'; known are 0 and 1"),
        ({"mc2_targets": {"choices": ["a", 3], "labels": [1, 0]}}, "column 'mc2_targets', item 2 is 3, not text"),
        ({"mc1_targets": {"a": 0}}, "column 'mc1_targets' has 0 correct answers, not one"),
        ({"mc1_targets": {"a": 1, "b": 1}}, "column 'mc1_targets' has 2 correct answers, not one"),
        (
            {"mc1_targets": {"No, you cannot": 1, "Yes, easily": 0, "": 0}},
            "columns 'mc1_targets' and 'mc2_targets' differ in the incorrect answer ' With luck.'",
        ),
        (
            {"mc0_targets": {"Nobody can; it is too far": 1, "Yes, easily": 0}},
            "column 'mc0_targets' calls 'Nobody can; it is too far' correct, 'mc1_targets' 'No, you cannot'",
        ),
        (
            {"mc0_targets": {"No, you cannot": 1, "Yes, easily": 0, "Yes": 0}},
            "column 'mc0_targets' has 2 incorrect answers, not one",
        ),
        ({"question": 3}, "column 'question' is 3, not text"),
    ],
)
def test_bad_rows(changes, reason):
    with pytest.raises(BadRowError) as caught:
        MULTIPLE_CHOICE.answers(AUTHORS | changes)
    assert str(caught.value) == reason


def test_nothing_but_empty_answers_on_one_side():
    row = {"question": "?", "mc1_targets": {"a": 1, "": 0}, "mc2_targets": {"a": 1, "": 0}}
    with pytest.raises(BadRowError, match="the question has no incorrect answer"):
        MULTIPLE_CHOICE.convert(row, Options())


def test_the_authors_file(shared_data):
    rows = json.loads((shared_data / "truthfulqa" / "mc_task.json").read_text(encoding="utf-8"))
    assert recognise(rows[:5], "x") is MULTIPLE_CHOICE
    empty = 0
    for row in rows:
        found = MULTIPLE_CHOICE.answers(row)
        assert dict.fromkeys(found.correct, 1) | dict.fromkeys(found.incorrect, 0) == row["mc2_targets"]
        assert {found.best: 1} | dict.fromkeys(found.incorrect, 0) == row["mc1_targets"]
        assert {found.best: 1, found.best_incorrect: 0} == row["mc0_targets"]
        assert found.best in found.correct
        empty += "" in row["mc2_targets"]
        made = MULTIPLE_CHOICE.convert(row, Options(pairs="all"))
        assert {one.chosen for one in made} == set(found.correct) - {""}
        assert {one.rejected for one in made} == set(found.incorrect) - {""}
    assert (len(rows), empty) == (790, 22)
