from __future__ import annotations

import math

import pytest
import torch

from lora_dpo.errors import UserError
from lora_dpo.merging.agreement import Agreement
from lora_dpo.merging.verdict import BOUNDS, Verdict

TRAINED = Agreement(0.5, 0.1, 3.0)
"""What the adapters do, in these tests."""


def verdict(merged: Agreement, dtype: torch.dtype = torch.bfloat16, untrained: Agreement = TRAINED) -> Verdict:
    return Verdict(merged, untrained, dtype, [])


@pytest.mark.parametrize("dtype", BOUNDS)
def test_what_is_within_its_precision_is_taken(dtype: torch.dtype) -> None:
    bounds = BOUNDS[dtype]
    verdict(Agreement(bounds.top1_agreement, bounds.kl_mean, bounds.logp_max_abs), dtype).check()


@pytest.mark.parametrize(
    ("merged", "words"),
    [
        (Agreement(0.8, 1e-5, 0.1), "top-1 agreement is 80.00%, not at least 90.00%"),
        (Agreement(0.99, 2e-2, 0.1), "KL is 2.00e-02 nats a token, not at most 5e-03"),
        (Agreement(0.99, 1e-5, 2.5), "a log-prob is 2.5 nats off, not at most 2"),
        (Agreement(0.99, math.nan, 0.1), "KL is nan nats a token"),
    ],
)
def test_what_is_outside_is_refused_with_its_numbers(merged: Agreement, words: str) -> None:
    with pytest.raises(UserError, match="is not the one that was trained, so it was not kept") as caught:
        verdict(merged).check()
    assert caught.value.why.startswith("On the probes, in bfloat16: ")
    assert words in caught.value.why
    assert "--dtype fp32" in caught.value.fix


def test_a_finer_precision_has_closer_bounds() -> None:
    rounded = Agreement(0.98, 1e-3, 0.2)
    verdict(rounded, torch.bfloat16).check()
    for dtype in (torch.float16, torch.float32):
        with pytest.raises(UserError, match="was not kept"):
            verdict(rounded, dtype).check()
    with pytest.raises(UserError) as caught:
        verdict(rounded, torch.float32).check()
    assert "fp32" not in caught.value.fix


def test_adapters_whose_effect_was_rounded_away() -> None:
    weak = Agreement(0.99, 1e-6, 0.01)
    with pytest.raises(UserError, match="has lost what the adapters do") as caught:
        verdict(Agreement(0.99, 0.9e-6, 0.01), untrained=weak).check()
    assert "a KL of 1.00e-06 nats a token, and rounding to bfloat16 is 9.00e-07" in caught.value.why
    verdict(Agreement(0.99, 1e-7, 0.01), untrained=weak).check()


def test_adapters_that_do_nothing_lose_nothing() -> None:
    verdict(Agreement(1.0, 1e-7, 0.01), untrained=Agreement(1.0, 0.0, 0.0)).check()
