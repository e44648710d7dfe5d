from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lora_dpo.tree.tally import Tally


def alone(totals: Tensor) -> Tensor:
    return totals


def test_means_are_over_things_not_over_micro_batches() -> None:
    tally = Tally()
    tally.add("loss", 1.0, 3)
    tally.add("loss", torch.tensor(5.0), torch.tensor(1))
    tally.add("entropy", torch.tensor(0.5), 10)
    means, counts = tally.means(alone)
    assert means == {"loss": (3 * 1.0 + 1 * 5.0) / 4, "entropy": 0.5}
    assert counts == {"loss": 4.0, "entropy": 10.0}


def test_a_count_of_zero_adds_nothing() -> None:
    tally = Tally()
    tally.add("loss", 7.0, 0)
    assert tally.means(alone) == ({"loss": 0.0}, {"loss": 0.0})
    tally.add("loss", 2.0, 5)
    tally.add("loss", torch.tensor(9.0), torch.tensor(0))
    assert tally.means(alone) == ({"loss": 2.0}, {"loss": 5.0})


def test_the_mean_of_nothing_adds_nothing() -> None:
    tally = Tally()
    tally.add("loss", torch.zeros(0).mean(), 0)
    tally.add("loss", 2.0, 5)
    assert tally.means(alone) == ({"loss": 2.0}, {"loss": 5.0})


def test_no_graph_is_kept() -> None:
    mean, count = torch.ones((), requires_grad=True), torch.ones((), requires_grad=True)
    tally = Tally()
    tally.add("loss", mean * 2, count * 3)

    def reduce(totals: Tensor) -> Tensor:
        assert not totals.requires_grad
        return totals

    assert tally.means(reduce) == ({"loss": 2.0}, {"loss": 3.0})


def test_a_nan_that_counts_is_not_hidden() -> None:
    tally = Tally()
    tally.add("loss", torch.tensor(float("nan")), 1)
    tally.add("loss", 2.0, 5)
    tally.add("entropy", 1.0, 1)
    means, counts = tally.means(alone)
    assert math.isnan(means["loss"])
    assert means["entropy"] == 1.0
    assert counts == {"loss": 6.0, "entropy": 1.0}


def test_all_names_are_reduced_in_one_call() -> None:
    mine, other = Tally(), Tally()
    mine.add("loss", 1.0, 1)
    mine.add("entropy", 3.0, 2)
    other.add("loss", 4.0, 2)
    other.add("entropy", 8.0, 0)
    calls: list[Tensor] = []
    other.means(lambda totals: calls.append(totals) or totals)

    def reduce(totals: Tensor) -> Tensor:
        calls.append(totals)
        return totals + calls[0]

    means, counts = mine.means(reduce)
    assert len(calls) == 2
    assert [call.shape for call in calls] == [(2, 2)] * 2
    assert calls[1].tolist() == [[1.0, 1.0], [6.0, 2.0]]  # sums and counts, in the order in which names came
    assert means == {"loss": (1.0 + 2 * 4.0) / 3, "entropy": 3.0}
    assert counts == {"loss": 3.0, "entropy": 2.0}


def test_nothing_added_is_nothing_reduced() -> None:
    assert Tally().means(lambda _: pytest.fail("nobody else may be there to answer")) == ({}, {})


def test_many_small_numbers_are_not_lost_beside_large_ones() -> None:
    tally = Tally()
    tally.add("tokens", torch.tensor(1.0), 2**25)
    for _ in range(3):
        tally.add("tokens", torch.tensor(1.0), 1)  # 2^25 + 1 is not in fp32
    assert tally.means(alone)[1] == {"tokens": 2.0**25 + 3}


def test_means_may_be_asked_for_again() -> None:
    tally = Tally()
    tally.add("loss", 1.0, 1)
    assert tally.means(alone) == tally.means(alone) == ({"loss": 1.0}, {"loss": 1.0})
