"""Answers to held-out questions, before and after: how they are written, and what judges say of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

from lora_dpo.data.chat import TokenisedExample, TokenisedPair, TurnEncoder
from lora_dpo.data.question import Question
from lora_dpo.evaluation.answers import Answers, compare_answers
from lora_dpo.evaluation.cost import Wins, count_wins
from lora_dpo.evaluation.judges.base import Agreement, References
from lora_dpo.evaluation.judges.choice import load_judge
from lora_dpo.evaluation.policies import Policies
from lora_dpo.evaluation.statistics import Comparison, compare
from lora_dpo.evaluation.style import style_of
from lora_dpo.evaluation.work import Work
from lora_dpo.recipe.schema import EvaluationSection


class Sample(TypedDict):
    """One held-out question with the model's greedy answers, and the one that people chose or that is to be learnt."""

    prompt: str
    before: str
    after: str
    chosen: str


class Judged(TypedDict):
    """What a judge says of the greedy answers, and how far it agrees with people on the same questions' references."""

    judge: str
    agreement: Agreement
    score: Comparison
    wins: Wins


class Generation(TypedDict):
    """How answers are written: `tokens`, `words`, `repetition`, `refusal` and `ended`, by the way of writing."""

    n: int
    max_new_tokens: int
    greedy: dict[str, Comparison]
    sampled: dict[str, Comparison]
    judges: list[Judged]


@dataclass(frozen=True, slots=True)
class Written:
    """The answers themselves.

    Attributes:
        asked: A pair, or an example, of each question.
        greedy: The most likely answers.
        sampled: Answers drawn at temperature 1.
    """

    asked: list[TokenisedPair] | list[TokenisedExample]
    greedy: Answers
    sampled: Answers

    @property
    def prompts(self) -> list[list[int]]:
        """The questions, as token ids."""
        return [pair.prompt_ids for pair in self.asked]

    def samples(self) -> list[Sample]:
        """Returns the greedy answers side by side."""
        return [
            {
                "prompt": pair.prompt[-1]["content"],
                "before": old["text"],
                "after": new["text"],
                "chosen": pair.answer,
            }
            for pair, old, new in zip(self.asked, self.greedy["before"], self.greedy["after"], strict=True)
        ]


def write(
    work: Work,
    policies: Policies,
    encoder: TurnEncoder,
    pairs: Sequence[TokenisedPair] | Sequence[TokenisedExample],
    options: EvaluationSection,
    *,
    seed: int,
) -> Written:
    """Answers the first held-out questions, before and after, greedily and sampled.

    Args:
        work: How the forward passes are carried out.
        policies: The two policies.
        encoder: The model's template and tokenizer.
        pairs: Held-out pairs, or examples; a question is asked once.
        options: How many questions, and how long answers may be.
        seed: Of the sampling.
    """
    first_of_group = {pair.group: pair for pair in reversed(pairs)}
    asked = list(reversed(first_of_group.values()))[: options.samples]
    greedy, sampled = (
        compare_answers(
            work,
            policies,
            encoder,
            [pair.prompt_ids for pair in asked],
            max_new_tokens=options.max_new_tokens,
            batch_size=options.batch_size,
            seed=drawn_with,
        )
        for drawn_with in (None, seed)
    )
    return Written(asked, greedy, sampled)


def summarise(
    work: Work, written: Written, questions: Mapping[str, Question], options: EvaluationSection, *, seed: int
) -> Generation:
    """Compares the answers, and has them judged where the questions have labelled answers.

    Args:
        work: How the judges' forward passes are carried out.
        written: The answers, to one question at least.
        questions: Held-out questions by their group.
        options: The judges.
        seed: Of the bootstrap.
    """
    return {
        "n": len(written.asked),
        "max_new_tokens": options.max_new_tokens,
        "greedy": _compared(written.greedy, seed),
        "sampled": _compared(written.sampled, seed),
        "judges": [_judged(work, name, written, questions, options, seed) for name in options.judges],
    }


def _compared(answers: Answers, seed: int) -> dict[str, Comparison]:
    before, after = style_of(answers["before"]), style_of(answers["after"])
    return {key: compare(before[key], after[key], seed=seed) for key in before}


def _judged(
    work: Work, name: str, written: Written, questions: Mapping[str, Question], options: EvaluationSection, seed: int
) -> Judged:
    judge = load_judge(work, name, batch_size=options.batch_size)
    known = list(questions.values())
    agreement = judge.agreement([question.prompt for question in known], [_references(part) for part in known])
    places = [place for place, pair in enumerate(written.asked) if pair.group in questions]
    asked = [questions[written.asked[place].group] for place in places]
    scores = [
        judge.scores(
            [question.prompt for question in asked],
            [answers[place]["text"] for place in places],
            [_references(question) for question in asked],
        )
        for answers in (written.greedy["before"], written.greedy["after"])
    ]
    return {
        "judge": judge.name,
        "agreement": agreement,
        "score": compare(*scores, seed=seed),
        "wins": count_wins(*scores),
    }


def _references(question: Question) -> References:
    return References(question.correct, question.incorrect)
