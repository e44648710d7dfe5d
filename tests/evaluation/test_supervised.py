from __future__ import annotations

import math

import numpy as np
import pytest

from lora_dpo.data.chat import TokenisedExample
from lora_dpo.data.example import Example
from lora_dpo.data.pair import group_of, user
from lora_dpo.evaluation.gathering import gather
from lora_dpo.evaluation.generation import Written
from lora_dpo.evaluation.outcomes import examples
from lora_dpo.evaluation.supervised import ExampleScores, losses_of_questions, summarise
from lora_dpo.evaluation.tables import counts, remarks, rows, verdict

# Two answers to the first question, of 2 and 6 tokens, and one of 4 tokens to the second.
SCORES = ExampleScores(
    before=np.array([-4.0, -12.0, -4.0]),
    after=np.array([-2.0, -6.0, -6.0]),
    tokens=np.array([2, 6, 4]),
    groups=np.array([0, 0, 1]),
)
FOUND = summarise(SCORES, seed=0)


def test_a_question_s_loss_is_a_mean_over_the_tokens_of_its_answers() -> None:
    before, after = losses_of_questions(SCORES)
    assert before.tolist() == [16 / 8, 4 / 4]
    assert after.tolist() == [8 / 8, 6 / 4]


def test_questions_weigh_the_same_and_less_is_better() -> None:
    loss = FOUND["loss"]
    assert (loss["before"], loss["after"], loss["difference"]) == (1.5, 1.25, -0.25)
    assert (loss["better"], loss["worse"], loss["n"]) == (1, 1, 2)
    assert FOUND["perplexity_before"] == pytest.approx(math.exp(1.5))
    assert FOUND["perplexity_after"] == pytest.approx(math.exp(1.25))
    assert (FOUND["n_examples"], FOUND["n_groups"]) == (3, 2)


@pytest.mark.parametrize(
    ("ci95", "begins"),
    [((-0.5, -0.1), "Better: held-out loss 1.500 -> 1.250"), ((0.1, 0.5), "Worse"), ((-0.5, 0.1), "No")],
)
def test_the_verdict_is_what_the_interval_says(ci95: tuple[float, float], begins: str) -> None:
    found = {**FOUND, "loss": {**FOUND["loss"], "ci95": ci95}}
    assert verdict({"multiple_choice": None, "preference": None, "sft": found}).startswith(begins)


def test_in_words() -> None:
    report = {"multiple_choice": None, "preference": None, "generation": None, "cost": None, "sft": FOUND}
    ((name, before, after, change, _, _),) = rows(report)
    assert (name, before, after, change) == ("loss, nats a token", "1.500", "1.250", "-0.250")
    assert list(remarks(report)) == ["Perplexity of held-out answers: 4.48 -> 3.49."]
    assert counts(report).startswith("held out: 3 examples of 2 questions;")


def test_the_questions_that_changed_most() -> None:
    nothing = {"before": [], "after": []}
    turns = [user(text) for text in ("Bats?", "Bats?", "Sky?")]
    given = [
        TokenisedExample(Example(prompt, answer, group_of(prompt)), [1], [2])
        for prompt, answer in zip(turns, ("They see.", "Well.", "Blue."), strict=True)
    ]
    outcomes = gather([], None, [], Written([], nothing, nothing), given, SCORES)
    assert [(each.prompt, each.before, each.after) for each in outcomes] == [
        ("Bats?", {"loss": 2.0}, {"loss": 1.0}),
        ("Sky?", {"loss": 1.0}, {"loss": 1.5}),
    ]
    changed = examples(outcomes)
    assert [each["texts"] for each in changed["improved"]] == [{"answer": "They see."}]
    assert [each["texts"] for each in changed["worse"]] == [{"answer": "Blue."}]
