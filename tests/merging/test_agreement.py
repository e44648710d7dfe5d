from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from lora_dpo.merging.agreement import Agreement, compare
from lora_dpo.merging.probes import Probes
from lora_dpo.tree.sequences import Completion


class Table(nn.Module):
    """A model whose logits follow from the last token alone."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits, requires_grad=False)
        text = SimpleNamespace(vocab_size=logits.shape[1])
        self.config = SimpleNamespace(get_text_config=lambda: text)
        self.device = torch.device("cpu")

    def forward(self, input_ids: Tensor, use_cache: bool) -> SimpleNamespace:
        return SimpleNamespace(logits=self.logits[input_ids])


def opened(probabilities: list[list[float]]):
    @contextmanager
    def model() -> Iterator[nn.Module]:
        yield Table(torch.tensor(probabilities).log())

    return model


PROBES = Probes("hand", ["?"], [[0]], [Completion.of([0], [1, 0]), Completion.of([1, 0], [1])])
"""What is predicted: 1 after 0, 0 after 1, 1 after 0."""


def test_numbers_are_those_of_a_hand_calculation() -> None:
    expected = [[0.25, 0.75], [0.5, 0.5]]
    other = [[0.75, 0.25], [0.5, 0.5]]
    found = compare(opened(expected), {"other": opened(other), "same": opened(expected)}, PROBES)
    kl = 0.25 * math.log(0.25 / 0.75) + 0.75 * math.log(0.75 / 0.25)
    assert found["other"].top1_agreement == pytest.approx(1 / 3)
    assert found["other"].kl_mean == pytest.approx(2 / 3 * kl, rel=1e-6)
    assert found["other"].logp_max_abs == pytest.approx(math.log(3), rel=1e-6)
    assert found["same"] == Agreement(1.0, 0.0, 0.0)


def test_a_model_that_computes_no_numbers() -> None:
    broken = compare(opened([[0.5, 0.5]] * 2), {"broken": opened([[math.nan, 0.5]] * 2)}, PROBES)["broken"]
    assert math.isnan(broken.kl_mean)
    assert math.isnan(broken.logp_max_abs)
