from __future__ import annotations

import dataclasses

import pytest

from lora_dpo.data.groups import merge_groups
from lora_dpo.data.pair import Pair, group_of, user
from lora_dpo.data.question import Question, distinct_questions, divide_questions
from lora_dpo.recipe.schema import Source


def asked(text: str, *, best: str = "yes", source: int = 0) -> Question:
    turns = user(text)
    return Question(turns, (best, "sure"), ("no",), best, "no", "", group_of(turns), f"{source}.csv", source)


def pair_of(text: str, group: str | None = None) -> Pair:
    turns = user(text)
    return Pair(turns, "yes", "no", group or group_of(turns))


def divided(questions: list[Question], uses: list[str], **pairs: list[Pair]) -> dict[str, list[str]]:
    sources = [Source(path=f"{number}.csv", use=use) for number, use in enumerate(uses)]
    found = divide_questions(questions, sources, {"train": [], "validation": [], "test": [], **pairs})
    assert list(found) == ["train", "validation", "test"]
    return {name: [one.prompt[0]["content"] for one in own] for name, own in found.items()}


def test_place_and_source_make_no_other_question():
    assert asked("A?") == dataclasses.replace(asked("A?"), origin="elsewhere", source=7)
    assert asked("A?") != asked("A?", best="of course")
    with pytest.raises(dataclasses.FrozenInstanceError):
        asked("A?").best = "no"


def test_one_question_a_prompt_and_the_first_is_kept():
    found = distinct_questions([asked("A?"), asked("a ", best="other"), asked("B?")], [])
    assert found == [asked("A?"), asked("B?")]


def test_questions_follow_their_pairs_into_merged_groups():
    pairs = merge_groups([pair_of("A?", "theme"), pair_of("B?", "theme"), pair_of("b"), pair_of("C?")])
    found = distinct_questions([asked("A?"), asked("b?"), asked("C?"), asked("D?")], pairs)
    groups = [one.group for one in found]
    assert groups[0] == groups[1] == pairs[0].group == pairs[2].group
    assert groups[2:] == [group_of(user("C?")), group_of(user("D?"))]


def test_a_question_is_where_its_pairs_are():
    questions = [asked(text) for text in ("A?", "B?", "C?", "D?")]
    found = divided(questions, ["auto"], train=[pair_of("C?")] * 3, validation=[pair_of("A?")], test=[pair_of("B?")])
    assert found == {"train": ["C?"], "validation": ["A?"], "test": ["B?"]}  # D? has no pair left


def test_a_source_for_testing_keeps_questions_without_pairs():
    questions = [asked(text, source=number) for number, text in enumerate(("A?", "B?", "C?", "D?"))]
    found = divided(questions, ["test", "validation", "train", "auto"])
    assert found == {"train": [], "validation": [], "test": ["A?"]}


def test_a_question_that_is_trained_on_is_not_tested():
    assert divided([asked("A?", source=0)], ["test"], train=[pair_of("a")]) == {
        "train": ["A?"], "validation": [], "test": [],
    }  # fmt: skip
