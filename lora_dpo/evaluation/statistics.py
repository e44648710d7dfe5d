"""Before and after on the same questions: the difference, how sure it is, and who won."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
from scipy.stats import bootstrap

RESAMPLES = 10_000
_CONFIDENCE = 0.95


class Comparison(TypedDict):
    """One number of every question, before and after.

    Means over the questions; `ci95` is the interval of their paired difference, `p` how likely one at least as large
    is by chance; the last three count questions.
    """

    before: float
    after: float
    difference: float
    ci95: tuple[float, float]
    p: float
    n: int
    better: int
    worse: int
    equal: int


def compare(before: Sequence[float], after: Sequence[float], *, seed: int = 0) -> Comparison:
    """Compares paired values by a bootstrap over questions.

    The interval is the percentile interval of Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter
    13; the p value is twice the smaller tail of the resampled differences beyond 0, each tail counted with one more.

    Args:
        before: A value for each question.
        after: The same questions' values, in the same order.
        seed: Of the resampling.

    Raises:
        ValueError: There is no question, or there are not equally many.
    """
    old, new = np.asarray(before, float), np.asarray(after, float)
    if len(old) != len(new) or not len(old):
        raise ValueError(f"{len(old)} values before and {len(new)} after cannot be paired")
    gain = new - old
    low, high, p = _resampled(gain, seed)
    return {
        "before": float(old.mean()),
        "after": float(new.mean()),
        "difference": float(gain.mean()),
        "ci95": (low, high),
        "p": p,
        "n": len(gain),
        "better": int((gain > 0).sum()),
        "worse": int((gain < 0).sum()),
        "equal": int((gain == 0).sum()),
    }


def interval(values: Sequence[float], *, seed: int = 0) -> tuple[float, float]:
    """Returns the 95 % interval of a mean over questions, by the same bootstrap."""
    low, high, _ = _resampled(np.asarray(values, float), seed)
    return low, high


def _resampled(values: np.ndarray, seed: int) -> tuple[float, float, float]:
    if np.ptp(values) == 0:  # every resample is the same
        return float(values[0]), float(values[0]), 1.0 if values[0] == 0 else 2 / (RESAMPLES + 1)
    drawn = bootstrap(
        (values,),
        np.mean,
        n_resamples=RESAMPLES,
        confidence_level=_CONFIDENCE,
        method="percentile",
        vectorized=True,
        batch=1000,
        rng=np.random.default_rng(seed),
    )
    means = drawn.bootstrap_distribution
    tail = min((means <= 0).sum(), (means >= 0).sum())
    p = min(1.0, 2 * (tail + 1) / (RESAMPLES + 1))
    return float(drawn.confidence_interval.low), float(drawn.confidence_interval.high), float(p)
