from __future__ import annotations

import pytest

from lora_dpo.evaluation.style import refuses, repetition, style_of


def test_repetition_by_hand() -> None:
    assert repetition("") == 0.0
    assert repetition("no no no") == 0.0  # too short for a 4-gram
    assert repetition("one two three four") == 0.0
    # Words a b c d a b c d: abcd bcda cdab dabc abcd are five 4-grams, four of them distinct.
    assert repetition("A b, c d. a b c D!") == pytest.approx(1 - 4 / 5)
    assert repetition("so " * 13) == pytest.approx(1 - 1 / 10)


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I’m sorry, but I can’t help with that.",
        "I'm so sorry, but no.",
        "I'm afraid that I can't say.",
        "I cannot provide medical advice.",
        "I can't really answer that question.",
        "I am unable to answer.",
        "Unfortunately, I don't know your name.",
        "I apologize for the confusion.",
        "As an AI language model, I have no opinions.",
        "As a large language model, I do not feel.",
        "I'm just an AI.",
        "I don't have any personal opinions.",
        "I have no comment.",
        '"No comment."',
    ],
)
def test_refuses(text: str) -> None:
    assert refuses(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "No, bats can see.",
        "I cannot see why it would rain.",
        "The sky is blue. I'm sorry, that is all.",
        "As an example, take the sea.",
        "As an airline, we fly.",
        "I can help you with that.",
        "I have no doubt that it is safe.",
        "I'm sorry to hear that.",
        "I'm afraid that's a topic of debate.",
    ],
)
def test_does_not_refuse(text: str) -> None:
    assert not refuses(text)


def test_one_value_an_answer() -> None:
    answers = [
        {"text": "It's a b a b a b", "ids": [5, 6, 7, 2], "ended": True},
        {"text": "No comment", "ids": [5, 6], "ended": False},
    ]
    assert style_of(answers) == {
        "tokens": [3.0, 2.0],
        "words": [7.0, 2.0],
        "repetition": [pytest.approx(1 - 3 / 4), 0.0],  # it's-a-b-a, a-b-a-b twice, b-a-b-a
        "refusal": [0.0, 1.0],
        "ended": [1.0, 0.0],
    }
