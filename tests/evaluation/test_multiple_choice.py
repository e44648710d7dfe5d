from __future__ import annotations

import numpy as np
import pytest

from lora_dpo.data.pair import user
from lora_dpo.data.question import Question
from lora_dpo.evaluation.multiple_choice import answers_of, measure


def question(correct=("t1", "t2"), incorrect=("f1", "f2"), best="t1", best_incorrect="f1") -> Question:
    return Question(user("Why?"), correct, incorrect, best, best_incorrect, category="", group="g")


def test_the_authors_definitions() -> None:
    scores = np.log([0.2, 0.1, 0.15, 0.25])  # t1, t2, f1, f2
    assert measure(question(), scores) == {"mc0": 1.0, "mc1": 0.0, "mc2": pytest.approx(0.3 / 0.7)}
    assert measure(question(), np.log([0.3, 0.1, 0.15, 0.25])) == {"mc0": 1.0, "mc1": 1.0, "mc2": pytest.approx(0.5)}


def test_a_tie_is_wrong() -> None:
    assert measure(question(), [-1.0, -2.0, -1.0, -3.0])["mc0"] == 0.0
    assert measure(question(), [-1.0, -2.0, -3.0, -1.0])["mc1"] == 0.0


def test_probabilities_too_small_for_a_float_are_still_compared() -> None:
    scores = [-2000.0, -2000.0, -2000.0, -2000.0 + np.log(2)]
    assert measure(question(), scores)["mc2"] == pytest.approx(2 / 5)


def test_a_best_answer_that_is_not_listed_is_scored_but_has_no_part_in_the_others() -> None:
    asked = question(best_incorrect="f3")
    assert answers_of(asked) == ["t1", "t2", "f1", "f2", "f3"]
    found = measure(asked, np.log([0.2, 0.1, 0.1, 0.1, 0.25]))
    assert found == {"mc0": 0.0, "mc1": 1.0, "mc2": pytest.approx(0.3 / 0.5)}


def test_an_answer_on_both_sides_is_scored_once_and_counts_on_both() -> None:
    asked = question(correct=("t1", "Unknown"), incorrect=("Unknown", "f1"))
    assert answers_of(asked) == ["t1", "Unknown", "f1"]
    assert measure(asked, np.log([0.2, 0.1, 0.1]))["mc2"] == pytest.approx(0.3 / 0.5)


def test_without_a_best_incorrect_answer_there_is_no_mc0() -> None:
    assert set(measure(question(best_incorrect=""), [-1.0] * 4)) == {"mc1", "mc2"}
