"""What all judges have in common: scores, and how far these agree with people on the very data that is judged."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import Literal, NamedTuple, TypedDict

from lora_dpo.data.pair import Message


class References(NamedTuple):
    """The answers to one question that people have labelled."""

    correct: Sequence[str]
    incorrect: Sequence[str]

    def without(self, answer: str) -> References:
        """Returns the references but this one."""
        return References(*([other for other in side if other != answer] for side in self))


class Agreement(TypedDict):
    """How far a judge agrees with human labels.

    Attributes:
        of: What is counted. `answers`: a reference answer is judged, and agreed on where the verdict is its label.
            `pairs`: a correct and an incorrect answer to one question are compared, and agreed on where the correct
            one scores higher.
        agreement: Share agreed on; a score that says neither counts half.
        majority: What a judge gets that knows nothing: of answers the share of the more frequent label, of pairs 1/2.
        n: Answers or pairs.
    """

    of: Literal["answers", "pairs"]
    agreement: float
    majority: float
    n: int


class Judge(ABC):
    """Scores answers; more is better.

    Attributes:
        name: The model, as the user calls it.
        threshold: Answers that score more are called true; None where scores only rank the answers to one question.
        needs_references: Whether scores depend on the references.
    """

    name: str
    threshold: float | None
    needs_references: bool

    @abstractmethod
    def scores(
        self, prompts: Sequence[Sequence[Message]], answers: Sequence[str], references: Sequence[References]
    ) -> list[float]:
        """Returns a score for each answer.

        Args:
            prompts: The conversations up to the answers.
            answers: One answer to each.
            references: The labelled answers to each question; at least one on each side.
        """

    def agreement(self, prompts: Sequence[Sequence[Message]], references: Sequence[References]) -> Agreement:
        """Measures the agreement with the references' human labels, on these questions.

        Each reference answer is judged. Where the judge reads references, it is shown the others alone
        (leave-one-out), and an answer that is alone on its side is left out.

        Args:
            prompts: The questions.
            references: The labelled answers to each.

        Raises:
            ValueError: Nothing can be judged.
        """
        labelled = list(self._labelled(references))
        scores = self.scores(
            [prompts[item.question] for item in labelled],
            [item.answer for item in labelled],
            [item.shown for item in labelled],
        )
        return self._of_pairs(labelled, scores) if self.threshold is None else self._of_answers(labelled, scores)

    def _labelled(self, references: Sequence[References]) -> Iterator[_Labelled]:
        for question, given in enumerate(references):
            for is_correct, side in ((True, given.correct), (False, given.incorrect)):
                for answer in dict.fromkeys(side):
                    shown = given.without(answer) if self.needs_references else given
                    if shown.correct and shown.incorrect:
                        yield _Labelled(question, answer, is_correct, shown)

    def _of_answers(self, labelled: Sequence[_Labelled], scores: Sequence[float]) -> Agreement:
        if not labelled:
            raise ValueError("there is no reference answer that could be judged")
        margins = [
            (score - self.threshold) * (1 if item.is_correct else -1)
            for item, score in zip(labelled, scores, strict=True)
        ]
        correct = fmean(item.is_correct for item in labelled)
        return {
            "of": "answers",
            "agreement": fmean(map(_agreed, margins)),
            "majority": max(correct, 1 - correct),
            "n": len(labelled),
        }

    def _of_pairs(self, labelled: Sequence[_Labelled], scores: Sequence[float]) -> Agreement:
        by_label: dict[tuple[int, bool], list[float]] = defaultdict(list)
        for item, score in zip(labelled, scores, strict=True):
            by_label[item.question, item.is_correct].append(score)
        margins = [
            better - worse
            for (question, is_correct), side in by_label.items()
            if is_correct
            for better in side
            for worse in by_label.get((question, False), [])
        ]
        if not margins:
            raise ValueError("there is no pair of reference answers that could be compared")
        return {"of": "pairs", "agreement": fmean(map(_agreed, margins)), "majority": 0.5, "n": len(margins)}


class _Labelled(NamedTuple):
    question: int
    answer: str
    is_correct: bool
    shown: References


def _agreed(margin: float) -> float:
    return (margin > 0) + 0.5 * (margin == 0)
