r"""Does the model prefer what people prefer? On held-out pairs, before and after, every question counting the same.

With the log-probabilities of a pair's answers, w better and l worse, before (\pi_0) and after (\pi):

- accuracy: log \pi(w) > log \pi(l), and `normalised_accuracy` the same of means over tokens;
- margin: log \pi(w) - log \pi(l), in nats;
- reward: r(a) = \beta (log \pi(a) - log \pi_0(a)), the implicit reward of Rafailov et al., Direct Preference
  Optimization (2023), https://arxiv.org/abs/2305.18290, section 4; its accuracy and margin are those of r;
- calibration: \sigma(r(w) - r(l)) is the probability that the model gives to people's choice. Expected calibration
  error, Guo et al. (2017), https://arxiv.org/abs/1706.04599, section 2, over ten bins of confidence from 1/2 to 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from lora_dpo.data.chat import TokenisedPair
from lora_dpo.evaluation.scoring import Scored, Scores
from lora_dpo.evaluation.statistics import Comparison, compare, interval

_BINS = 10


class Estimate(TypedDict):
    """A mean over questions, with its 95 % interval."""

    value: float
    ci95: tuple[float, float]


class Calibration(TypedDict):
    """How sure the implicit reward is, and how often it is right, in bins of confidence that hold any pair."""

    error: float
    confidence: list[float]
    accuracy: list[float]
    weight: list[float]


class Preference(TypedDict):
    """Held-out preference; what each number is, this module says."""

    n_pairs: int
    n_groups: int
    accuracy: Comparison
    normalised_accuracy: Comparison
    margin: Comparison
    reward_accuracy: Estimate
    reward_margin: Estimate
    calibration: Calibration


@dataclass(frozen=True, slots=True)
class PairScores:
    """Log-probabilities of pairs, better answer first, each of shape (pairs, 2).

    Attributes:
        before: Before the training, in nats.
        after: After it.
        tokens: Scored tokens.
        groups: The question of each pair, as a number from 0 on, shape (pairs,).
    """

    before: NDArray[np.float64]
    after: NDArray[np.float64]
    tokens: NDArray[np.int64]
    groups: NDArray[np.int64]

    def rewards(self, beta: float) -> NDArray[np.float64]:
        """Returns the difference of the implicit rewards of each pair, shape (pairs,)."""
        gained = beta * (self.after - self.before)
        return gained[:, 0] - gained[:, 1]

    def by_question(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Returns the mean of the pairs' values within each question, in the questions' order."""
        return np.bincount(self.groups, values) / np.bincount(self.groups)


def questions_of(pairs: Sequence[TokenisedPair]) -> list[list[Scored]]:
    """Returns the sequences of each question's pairs, for `score_both`."""
    questions: dict[str, list[Scored]] = {}
    for pair in pairs:
        questions.setdefault(pair.pair.group, []).extend(_sequences(pair))
    return list(questions.values())


def pair_scores(pairs: Sequence[TokenisedPair], scores: Scores) -> PairScores:
    """Returns the pairs' log-probabilities.

    Args:
        pairs: Held-out pairs, one at least.
        scores: What `score_both` found of them.
    """
    number = {group: place for place, group in enumerate(dict.fromkeys(pair.pair.group for pair in pairs))}
    both = zip(*(scores.of(_sequences(pair)) for pair in pairs), strict=True)
    before, after = (np.array(values) for values in both)
    tokens = np.array([[len(completion) for _, completion in _sequences(pair)] for pair in pairs])
    return PairScores(before, after, tokens, np.array([number[pair.pair.group] for pair in pairs]))


def _sequences(pair: TokenisedPair) -> list[Scored]:
    return [(pair.prompt_ids, ids) for ids in (pair.chosen_ids, pair.rejected_ids)]


def summarise(scores: PairScores, *, beta: float, seed: int) -> Preference:
    """Averages within each question, then over questions, and compares before and after.

    Args:
        scores: The pairs' log-probabilities.
        beta: Of the implicit reward.
        seed: Of the bootstrap.
    """

    def estimate(values: NDArray[np.float64]) -> Estimate:
        means = scores.by_question(values)
        return {"value": float(means.mean()), "ci95": interval(means, seed=seed)}

    compared = {name: compare(*values, seed=seed) for name, values in of_questions(scores).items()}
    rewards = scores.rewards(beta)
    return {
        "n_pairs": len(scores.groups),
        "n_groups": int(scores.groups.max()) + 1,
        **compared,
        "reward_accuracy": estimate(_right(rewards)),
        "reward_margin": estimate(rewards),
        "calibration": calibration(rewards, scores.groups),
    }


def of_questions(scores: PairScores) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Returns `accuracy`, `normalised_accuracy` and `margin` of each question, before and after, shape (questions,)."""
    margins = [part[:, 0] - part[:, 1] for part in (scores.before, scores.after)]
    normalised = [(part / scores.tokens)[:, 0] - (part / scores.tokens)[:, 1] for part in (scores.before, scores.after)]
    values = {
        "accuracy": [_right(part) for part in margins],
        "normalised_accuracy": [_right(part) for part in normalised],
        "margin": margins,
    }
    return {name: (scores.by_question(old), scores.by_question(new)) for name, (old, new) in values.items()}


def calibration(rewards: NDArray[np.float64], groups: NDArray[np.int64]) -> Calibration:
    """Returns how well the implicit reward's confidence fits how often it is right, each question counting the same.

    Args:
        rewards: Difference of the implicit rewards of each pair, shape (pairs,).
        groups: The question of each pair, as a number from 0 on.
    """
    weights = 1 / np.bincount(groups)[groups]
    weights /= weights.sum()
    confidence = expit(np.abs(rewards))
    bins = np.minimum(((confidence - 0.5) * 2 * _BINS).astype(int), _BINS - 1)
    total = np.bincount(bins, weights, _BINS)
    filled = total > 0
    means = [
        np.bincount(bins, weights * values, _BINS)[filled] / total[filled] for values in (confidence, _right(rewards))
    ]
    return {
        "error": float((total[filled] * np.abs(means[0] - means[1])).sum()),
        "confidence": means[0].tolist(),
        "accuracy": means[1].tolist(),
        "weight": total[filled].tolist(),
    }


def _right(margins: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns 1 where the better answer is ahead, and 1/2 for a tie, as an untrained reward is."""
    return (margins > 0) + 0.5 * (margins == 0)
