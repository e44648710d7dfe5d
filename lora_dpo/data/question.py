"""`Question`: a prompt with all its correct and incorrect answers, the unit in which multiple choice is scored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from lora_dpo.data.pair import Message, Pair, group_of
from lora_dpo.data.split import SPLITS
from lora_dpo.recipe.schema import Source, SplitName


@dataclass(frozen=True, slots=True)
class Question:
    """One question with all its answers.

    Args:
        prompt: The conversation up to the answer; its last turn is the user's.
        correct: Every correct answer, at least one. Answers of multiple-choice files stay exactly as they are, so one
            may be empty.
        incorrect: Every incorrect answer, at least one. TruthfulQA lists two answers as correct and as incorrect.
        best: The best correct answer, one of `correct`: the one the data names, or else the first.
        best_incorrect: The incorrect answer that the data sets against the best one, or the empty text. TruthfulQA
            words three of them otherwise than in `incorrect`.
        category: What the question is about, or the empty text.
        group: Identifies the question, as `Pair.group` does.
        origin: Where the question was read, such as `data.csv, line 40`.
        source: Which of the recipe's sources it came from, counted from 0.
    """

    prompt: tuple[Message, ...]
    correct: tuple[str, ...]
    incorrect: tuple[str, ...]
    best: str
    best_incorrect: str
    category: str
    group: str
    origin: str = field(default="", compare=False)
    source: int = field(default=0, compare=False)


def distinct_questions(questions: Iterable[Question], pairs: Iterable[Pair]) -> list[Question]:
    """Returns the first question of each prompt, in the group that the prompt's pairs have.

    Args:
        questions: The questions of all sources.
        pairs: The pairs of all sources, in merged groups.
    """
    groups = {group_of(pair.prompt): pair.group for pair in pairs}
    first: dict[str, Question] = {}
    for question in questions:
        prompt = group_of(question.prompt)
        first.setdefault(prompt, replace(question, group=groups.get(prompt, prompt)))
    return list(first.values())


def divide_questions(
    questions: Iterable[Question], sources: Sequence[Source], pairs: Mapping[SplitName, Iterable[Pair]]
) -> dict[SplitName, list[Question]]:
    """Puts each question into the split that its group's pairs are in.

    A question none of whose pairs is left is in no split, unless its source is for testing only: what was wrong with
    its pairs, or a limit on them, says nothing against asking the question.

    Args:
        questions: The questions of all sources.
        sources: The sources, with their `use`.
        pairs: The pairs of each split.
    """
    sides = {pair.group: name for name, own in pairs.items() for pair in own}
    divided: dict[SplitName, list[Question]] = {name: [] for name in SPLITS}
    for question in questions:
        side = sides.get(question.group, "test" if sources[question.source].use == "test" else None)
        if side is not None:
            divided[side].append(question)
    return divided
