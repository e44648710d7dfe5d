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
from lora_dpo.evaluation.policies import Policies
from lora_dpo.evaluation.scoring import score_questions
from lora_dpo.evaluation.statistics import Comparison, compare
from lora_dpo.evaluation.work import Work


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


def score_examples(
    work: Work, policies: Policies, examples: Sequence[TokenisedExample], *, batch_size: int
) -> ExampleScores:
    """Scores examples before and after.

    Args:
        work: How the forward passes are carried out.
        policies: The two policies.
        examples: Held-out examples, one at least.
        batch_size: Without trees, sequences a forward pass.
    """
    number = {group: place for place, group in enumerate(dict.fromkeys(one.group for one in examples))}
    groups = np.array([number[one.group] for one in examples])
    by_question = [np.flatnonzero(groups == place) for place in range(len(number))]
    asked = [[(examples[i].prompt_ids, examples[i].answer_ids) for i in places] for places in by_question]
    found = []
    for policy, what in ((policies.before, "held-out answers, before"), (policies.after, "held-out answers, after")):
        scores = np.zeros(len(examples))
        with policy() as model:
            for places, values in zip(
                by_question, score_questions(work, model, asked, what, batch_size=batch_size), strict=True
            ):
                scores[places] = values
        found.append(scores)
    return ExampleScores(*found, np.array([len(one.answer_ids) for one in examples]), groups)


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
