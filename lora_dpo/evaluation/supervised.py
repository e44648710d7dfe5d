"""How well held-out answers are predicted, before and after an SFT stage, every question counting the same.

The loss of a question is the mean of -log p over its answers' tokens, end-of-turn tokens included, in nats; perplexity
is exp of the mean over questions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from lora_dpo.data.chat import TokenisedExample
from lora_dpo.evaluation.scoring import Scored, Scores
from lora_dpo.evaluation.statistics import Comparison, compare


class Supervised(TypedDict):
    """Held-out answers; what each number is, this module says. A lower loss is better."""

    n_examples: int
    n_groups: int
    loss: Comparison
    perplexity_before: float
    perplexity_after: float


@dataclass(frozen=True, slots=True)
class ExampleScores:
    """Log-probabilities of examples' answers, each of shape (examples,).

    Attributes:
        before: Before the training, in nats.
        after: After it.
        tokens: Scored tokens.
        groups: The question of each example, as a number from 0 on.
    """

    before: NDArray[np.float64]
    after: NDArray[np.float64]
    tokens: NDArray[np.int64]
    groups: NDArray[np.int64]


def sequences_of(examples: Sequence[TokenisedExample]) -> list[list[Scored]]:
    """Returns the sequences of each question's examples, for `score_both`."""
    questions: dict[str, list[Scored]] = {}
    for one in examples:
        questions.setdefault(one.group, []).append((one.prompt_ids, one.answer_ids))
    return list(questions.values())


def example_scores(examples: Sequence[TokenisedExample], scores: Scores) -> ExampleScores:
    """Returns the examples' log-probabilities.

    Args:
        examples: Held-out examples, one at least.
        scores: What `score_both` found of them.
    """
    number = {group: place for place, group in enumerate(dict.fromkeys(one.group for one in examples))}
    before, after = scores.of([(one.prompt_ids, one.answer_ids) for one in examples])
    tokens = np.array([len(one.answer_ids) for one in examples])
    return ExampleScores(np.array(before), np.array(after), tokens, np.array([number[one.group] for one in examples]))


def losses_of_questions(scores: ExampleScores) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns the loss of each question, before and after, in nats a token, shape (questions,)."""
    tokens = np.bincount(scores.groups, scores.tokens)
    before, after = (-np.bincount(scores.groups, values) / tokens for values in (scores.before, scores.after))
    return before, after


def summarise(scores: ExampleScores, *, seed: int) -> Supervised:
    """Averages over questions, and compares before and after.

    Args:
        scores: The examples' log-probabilities.
        seed: Of the bootstrap.
    """
    loss = compare(*losses_of_questions(scores), seed=seed)
    loss["better"], loss["worse"] = loss["worse"], loss["better"]  # less is better
    return {
        "n_examples": len(scores.groups),
        "n_groups": loss["n"],
        "loss": loss,
        "perplexity_before": math.exp(loss["before"]),
        "perplexity_after": math.exp(loss["after"]),
    }
