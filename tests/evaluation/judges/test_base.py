from __future__ import annotations

from collections.abc import Sequence

import pytest

from lora_dpo.data.pair import user
from lora_dpo.evaluation.judges.base import Judge, References

PROMPTS = [user("a"), user("b")]


class Known(Judge):
    """Gives every answer the score that it is known to have, and remembers what it was shown."""

    name = "known"

    def __init__(self, scores: dict[str, float], threshold: float | None, needs_references: bool) -> None:
        self.threshold, self.needs_references = threshold, needs_references
        self._scores = scores
        self.shown: list[tuple[str, str, References]] = []

    def scores(self, prompts: Sequence, answers: Sequence[str], references: Sequence[References]) -> list[float]:
        self.shown += [
            (prompt[0]["content"], answer, given)
            for prompt, answer, given in zip(prompts, answers, references, strict=True)
        ]
        return [self._scores[answer] for answer in answers]


def test_answers_are_shown_to_the_judge_without_themselves() -> None:
    references = [References(["p", "q", "p"], ["r"]), References(["s"], ["t", "u"])]
    judge = Known(dict.fromkeys("pqrstu", 1.0), threshold=0.0, needs_references=True)
    result = judge.agreement(PROMPTS, references)
    # r and s are alone on their side; p is listed twice, and judged once.
    assert judge.shown == [
        ("a", "p", References(["q"], ["r"])),
        ("a", "q", References(["p", "p"], ["r"])),
        ("b", "t", References(["s"], ["u"])),
        ("b", "u", References(["s"], ["t"])),
    ]
    # All called true: the two correct ones are.
    assert result == {"of": "answers", "agreement": 0.5, "majority": 0.5, "n": 4}


def test_agreement_of_answers_by_hand() -> None:
    scores = {"p": 0.9, "q": 0.5, "r": 0.2, "s": 0.7, "t": 0.6}
    judge = Known(scores, threshold=0.5, needs_references=False)
    result = judge.agreement(PROMPTS, [References(["p", "q"], ["r"]), References(["s"], ["t"])])
    # p, r and s agree; q is on the threshold and counts half; t, incorrect, is called true. 3 of 5 are correct.
    assert result == {"of": "answers", "agreement": pytest.approx(3.5 / 5), "majority": pytest.approx(3 / 5), "n": 5}


def test_agreement_of_pairs_by_hand() -> None:
    scores = {"p": 3.0, "q": -1.0, "r": -1.0, "s": -2.0, "t": 9.0}
    judge = Known(scores, threshold=None, needs_references=False)
    result = judge.agreement(PROMPTS, [References(["p", "q"], ["r"]), References(["s"], ["t"])])
    # p > r, q = r, s < t: across questions nothing is compared.
    assert result == {"of": "pairs", "agreement": pytest.approx(1.5 / 3), "majority": 0.5, "n": 3}


def test_nothing_to_agree_on() -> None:
    alone = [References(["p"], ["r"])]
    with pytest.raises(ValueError, match="no reference answer"):
        Known({}, threshold=0.0, needs_references=True).agreement(PROMPTS[:1], alone)
    with pytest.raises(ValueError, match="no pair"):
        Known({"p": 1.0}, threshold=None, needs_references=False).agreement(PROMPTS[:1], [References(["p"], [])])
