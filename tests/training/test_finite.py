from __future__ import annotations

import torch

from lora_dpo.training.finite import FiniteCheck, GradientGate


def test_the_places_of_bad_micro_batches_are_told_once() -> None:
    check = FiniteCheck()
    for loss in (0.5, float("nan"), 1.0, float("inf")):
        check.see_loss(torch.tensor(loss))
    assert check.seen == 4
    assert check.end_step() == ([1, 3], False)
    assert check.end_step() == ([], False)


def test_a_gradient_may_be_bad_where_no_loss_was() -> None:
    check = FiniteCheck()
    check.see_loss(torch.tensor(0.5))
    check.see_gradient_norm(torch.tensor(float("nan")))
    assert check.end_step() == ([], True)
    check.see_gradient_norm(2.0)
    assert check.end_step() == ([], False)


def test_a_closed_gate_lets_nothing_through_and_keeps_what_is_there() -> None:
    weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    gate = GradientGate([weight])
    (3 * weight).sum().backward()
    gate.closed = True
    (weight * float("nan")).sum().backward()
    assert weight.grad.tolist() == [3.0, 3.0]
    gate.closed = False
    weight.sum().backward()
    assert weight.grad.tolist() == [4.0, 4.0]
