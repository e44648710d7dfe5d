from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import ttest_rel

from lora_dpo.evaluation.statistics import compare, interval


def test_what_is_counted() -> None:
    found = compare([0.0, 1.0, 1.0, 0.5], [1.0, 1.0, 0.0, 1.0])
    assert (found["before"], found["after"], found["difference"]) == (0.625, 0.75, 0.125)
    assert (found["n"], found["better"], found["worse"], found["equal"]) == (4, 2, 1, 1)
    low, high = found["ci95"]
    assert low < 0.125 < high


def test_the_same_seed_gives_the_same_interval() -> None:
    before, after = np.random.default_rng(0).normal(size=(2, 50))
    assert compare(before, after, seed=1) == compare(before, after, seed=1)
    assert compare(before, after, seed=1)["ci95"] != compare(before, after, seed=2)["ci95"]


def test_many_questions_agree_with_the_t_test() -> None:
    draw = np.random.default_rng(3)
    before = draw.normal(size=400)
    after = before + draw.normal(0.12, 1.0, size=400)  # paired: what the two share does not widen the interval
    found, expected = compare(before, after), ttest_rel(after, before)
    assert found["ci95"] == pytest.approx(tuple(expected.confidence_interval()), abs=0.01)
    assert found["p"] == pytest.approx(expected.pvalue, abs=0.01)


def test_the_interval_holds_the_truth_19_times_of_20() -> None:
    draw = np.random.default_rng(5)
    held = [low < 0.3 < high for low, high in (interval(draw.binomial(1, 0.3, 200).astype(float)) for _ in range(200))]
    assert 0.9 <= np.mean(held) <= 0.99


@pytest.mark.parametrize(("gain", "p"), [(0.0, 1.0), (0.5, 2 / 10_001)])
def test_questions_that_all_gain_alike(gain: float, p: float) -> None:
    before = np.arange(20.0)
    found = compare(before, before + gain)
    assert found["ci95"] == (gain, gain)
    assert found["p"] == pytest.approx(p)


def test_one_question_is_no_evidence_but_a_number() -> None:
    assert compare([1.0], [2.0])["ci95"] == (1.0, 1.0)


@pytest.mark.parametrize(("before", "after"), [([], []), ([1.0], [1.0, 2.0])])
def test_values_that_cannot_be_paired(before: list[float], after: list[float]) -> None:
    with pytest.raises(ValueError, match="cannot be paired"):
        compare(before, after)
