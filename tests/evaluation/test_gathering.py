from __future__ import annotations

import numpy as np

from lora_dpo.data.chat import TokenisedPair
from lora_dpo.data.pair import Pair, group_of, user
from lora_dpo.data.question import Question
from lora_dpo.evaluation.gathering import gather
from lora_dpo.evaluation.generation import Written
from lora_dpo.evaluation.multiple_choice import Choice
from lora_dpo.evaluation.preference import PairScores
from lora_dpo.model.answering import Answer

SKY, BATS = user("Why is the sky blue?"), user("Do bats see?")
PAIRS = [
    TokenisedPair(Pair(prompt, chosen, rejected, group_of(prompt)), [1], [2], [3])
    for prompt, chosen, rejected in ((SKY, "Air.", "Sea."), (BATS, "Yes.", "No."), (SKY, "Air.", "Paint."))
]
QUESTION = Question(BATS, ("Yes.",), ("No.", "Never."), "Yes.", "No.", "Animals", group_of(BATS))
NOTHING = Written([], {"before": [], "after": []}, {"before": [], "after": []})


def answer(*ids: int) -> Answer:
    return {"text": "Well.", "ids": list(ids), "ended": True}


def test_all_that_is_known_of_a_question_stands_together() -> None:
    scores = PairScores(
        before=np.array([[-2.0, -1.0], [-3.0, -3.0], [-1.0, -4.0]]),
        after=np.array([[-1.0, -2.0], [-1.0, -3.0], [-1.0, -4.0]]),
        tokens=np.ones((3, 2), dtype=int),
        groups=np.array([0, 1, 0]),
    )
    choice = Choice(QUESTION, {"mc1": 0.0, "mc2": 0.25}, {"mc1": 1.0, "mc2": 0.75}, ("No.", "Yes."))
    greedy = {"before": [answer(5, 6, 7)], "after": [answer(5, 7)]}
    bats, sky = gather(PAIRS, scores, [choice], Written([PAIRS[0]], greedy, greedy))
    assert (bats.group, bats.prompt, bats.category) == (group_of(BATS), "Do bats see?", "Animals")
    assert bats.before == {"mc1": 0.0, "mc2": 0.25, "accuracy": 0.5, "normalised_accuracy": 0.5, "margin": 0.0}
    assert bats.after == {"mc1": 1.0, "mc2": 0.75, "accuracy": 1.0, "normalised_accuracy": 1.0, "margin": 2.0}
    favourites = {"favourite before": "No.", "favourite after": "Yes."}
    assert bats.texts == {"best": "Yes.", **favourites, "chosen": "Yes.", "rejected": "No."}
    assert (sky.prompt, sky.category, sky.texts) == ("Why is the sky blue?", "", {"chosen": "Air.", "rejected": "Sea."})
    assert (sky.before["accuracy"], sky.before["margin"]) == (0.5, 1.0)  # one pair right, one wrong: -1 and +3 nats
    assert (sky.before["tokens"], sky.after["tokens"]) == (2.0, 1.0)


def test_questions_alone_and_pairs_alone() -> None:
    choice = Choice(QUESTION, {"mc1": 0.0}, {"mc1": 1.0}, ("No.", "Yes."))
    (bats,) = gather([], None, [choice], NOTHING)
    assert (bats.before, bats.after) == ({"mc1": 0.0}, {"mc1": 1.0})
    assert gather([], None, [], NOTHING) == []
