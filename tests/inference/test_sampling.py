from __future__ import annotations

import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor

from lora_dpo.errors import UserError
from lora_dpo.inference.sampling import Sampling
from lora_dpo.model.answering import padded


def scores_after(sampling: Sampling, prompts: list[list[int]], scores: torch.Tensor) -> torch.Tensor:
    ids, _ = padded(prompts, 0)
    for processor in sampling.processors(prompts):
        scores = processor(ids, scores)
    return scores


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0, which must be a number from 1."),
        ({"temperature": -0.1}, "temperature is -0.1, which must be a number from 0 (0: most likely)."),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"top_p": 0.0}, "top_p is 0, which must be above 0 and at most 1 (1: off)."),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"top_k": -1}, "top_k is -1, which must be a number from 0 (0: off)."),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0, which must be above 0 (1: off)."),
    ],
)
def test_values_out_of_range(values: dict, message: str) -> None:
    with pytest.raises(UserError) as caught:
        Sampling(**values)
    assert caught.value.what.startswith(message)


def test_one_option_is_set_by_a_word() -> None:
    before = Sampling(temperature=0.7, seed=3)
    assert before.with_word("temperature=0") == Sampling(seed=3)
    assert before.with_word("max-new-tokens = 9") == Sampling(max_new_tokens=9, temperature=0.7, seed=3)
    assert before.with_word("seed=none") == Sampling(temperature=0.7)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("temprature=1", "There is no option 'temprature'.\nDid you mean 'temperature'?"),
        ("temperature", "'temperature' is not NAME=VALUE.\nWhat can be set: max_new_tokens, temperature, top_p, "),
        ("temperature=hot", "temperature is 'hot', which is no number."),
        ("top_k=1.5", "top_k is '1.5', which is no whole number."),
        ("top_p=2", "top_p is 2, which must be"),
    ],
)
def test_a_wrong_word(word: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        Sampling().with_word(word)
    assert str(caught.value).startswith(message)


def test_greedy_changes_no_score() -> None:
    assert Sampling(top_p=0.5, top_k=2, seed=1).processors([[1]]) == []


def test_draws_follow_temperature_top_k_and_top_p() -> None:
    """Of 0.5, 0.3, 0.15, 0.05 at temperature 0.5 the squares are 0.685, 0.247, 0.062, 0.007 of their sum 0.365."""
    shares = torch.tensor([0.5, 0.3, 0.15, 0.05])
    prompts = [[number] for number in range(3000)]
    scores = shares.log().expand(3000, -1)

    def drawn(**options) -> list[float]:
        chosen = scores_after(Sampling(seed=0, **options), prompts, scores).argmax(1)
        return (chosen.bincount(minlength=4) / 3000).tolist()

    assert drawn(temperature=1.0) == pytest.approx(shares.tolist(), abs=0.03)
    assert drawn(temperature=0.5) == pytest.approx([0.685, 0.247, 0.062, 0.007], abs=0.03)
    assert drawn(temperature=1.0, top_k=2) == pytest.approx([0.625, 0.375, 0, 0], abs=0.03)
    assert drawn(temperature=1.0, top_p=0.9) == pytest.approx([0.526, 0.316, 0.158, 0], abs=0.03)


def test_a_seed_that_is_not_given_is_drawn_once() -> None:
    seeded = Sampling(temperature=1.0).seeded()
    assert seeded.seed is not None
    assert seeded.seeded() is seeded
    assert Sampling(temperature=1.0).seeded().seed != seeded.seed


def test_padding_is_no_repetition() -> None:
    """The token that pads, 0, is penalised where the prompt has it, not where it stands in front of it."""
    scores = torch.tensor([[2.0, 2.0, -2.0, 2.0]]).repeat(2, 1)
    penalised = scores_after(Sampling(repetition_penalty=2.0), [[1, 0, 2], [3]], scores)
    assert penalised.tolist() == [[1.0, 1.0, -4.0, 2.0], [2.0, 2.0, -2.0, 1.0]]
    alone = RepetitionPenaltyLogitsProcessor(2.0)(torch.tensor([[3]]), scores[1:])
    assert penalised[1:].equal(alone)
