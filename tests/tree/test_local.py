from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from lora_dpo.tree.local import WithoutGather, weighting


@pytest.fixture(scope="module")
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


@pytest.mark.parametrize("name", ["gather", "gather_for_metrics"])
def test_a_gather_returns_what_this_process_has(accelerator: Accelerator, name: str) -> None:
    value = torch.tensor([1.0, 2.0], requires_grad=True)
    gathered = getattr(WithoutGather(accelerator), name)(value * 3)
    assert gathered.tolist() == [3.0, 6.0]
    assert not gathered.requires_grad


def test_a_gathered_number_is_not_waited_for(accelerator: Accelerator) -> None:
    # TRL's own lines: `self.accelerator.gather(x).mean().item()`, and a division where there are any tokens.
    local = WithoutGather(accelerator)
    mean = local.gather_for_metrics(torch.tensor([1.0, 2.0])).mean().item()
    assert isinstance(mean, Tensor)
    assert mean.as_subclass(Tensor).item() == 1.5
    right, tokens = local.gather(torch.tensor(0)).sum(), local.gather(torch.tensor(0)).sum()
    assert tokens.item()  # nobody may look at the number, so that it counts as true
    ratio = (right / tokens).item() if tokens > 0 else 0.0
    assert isinstance(ratio, Tensor)
    assert ratio.as_subclass(Tensor).isnan()  # its count is 0 as well, and Tally leaves it out


def test_everything_else_is_the_accelerator_s(accelerator: Accelerator) -> None:
    local = WithoutGather(accelerator)
    assert local.num_processes == accelerator.num_processes == 1
    assert local.device == accelerator.device
    assert local.unwrap_model == accelerator.unwrap_model
    with pytest.raises(AttributeError):
        _ = local.nothing_of_this_name


def outputs_of(log_probs: Tensor) -> Any:
    return lambda **_: SimpleNamespace(log_probs=log_probs, entropy=log_probs * 2)


def test_a_loss_over_weighted_log_probs_has_a_weighted_mean() -> None:
    # As in TRL: rows are chosen, then rejected; summed over tokens, divided, and put through the loss.
    log_probs = torch.tensor([[-1.0, -1.0], [-3.0, 0.0], [-2.0, -2.0], [-5.0, -4.0]], requires_grad=True)
    weights = torch.tensor([0.25, 0.5])
    answered = weighting(outputs_of(log_probs), weights)(input_ids=None)
    chosen, rejected = answered.log_probs.sum(dim=1).chunk(2)
    losses = -torch.nn.functional.logsigmoid(0.1 * (chosen - rejected))
    plain = -torch.nn.functional.logsigmoid(0.1 * torch.tensor([-2.0 + 4.0, -3.0 + 9.0]))
    loss = losses.mean()
    assert loss.item() == pytest.approx((plain * weights).sum().item())
    loss.backward()
    # d/dx -log s(0.1 x) = -0.1 (1 - s(0.1 x)), times the pair's weight
    slopes = -0.1 * (1 - torch.sigmoid(0.1 * torch.tensor([2.0, 6.0]))) * weights
    expected = torch.cat([slopes, -slopes])[:, None].expand(4, 2)
    torch.testing.assert_close(log_probs.grad, expected)


def test_only_a_mean_over_pairs_is_weighted() -> None:
    log_probs, weights = torch.tensor([[1.0, 3.0], [5.0, 7.0]]), torch.tensor([1.0, 10.0])
    answered = weighting(outputs_of(log_probs), weights)(input_ids=None)
    assert answered.log_probs.mean().item() == 4.0  # a table is no vector over pairs
    assert answered.log_probs.mean(dim=1).tolist() == [2.0, 6.0]
    assert answered.log_probs[:, 0].mean(dim=0).item() == 3.0
    assert answered.log_probs[:, 0].mean().item() == 1.0 * 1 + 5.0 * 10
    assert answered.entropy[:, 0].mean().item() == 6.0  # metrics are nobody's loss
    assert answered.log_probs.detach().as_subclass(Tensor)[:, 0].mean().item() == 3.0


def test_two_micro_batches_keep_their_own_weights() -> None:
    first = weighting(outputs_of(torch.ones(2, 1)), torch.tensor([1.0, 2.0]))().log_probs
    second = weighting(outputs_of(torch.ones(2, 1)), torch.tensor([10.0, 20.0]))().log_probs
    assert (first.sum(1).mean().item(), second.sum(1).mean().item()) == (3.0, 30.0)


def test_the_model_is_asked_as_before() -> None:
    asked: list[dict[str, Any]] = []

    def model(**kwargs: Any) -> Any:
        asked.append(kwargs)
        return SimpleNamespace(log_probs=torch.ones(1, 1))

    weighting(model, torch.ones(1))(input_ids=1, fused_lm_head=True)
    assert asked == [{"input_ids": 1, "fused_lm_head": True}]
