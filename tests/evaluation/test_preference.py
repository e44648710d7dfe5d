from __future__ import annotations

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from lora_dpo.data.chat import TokenisedPair
from lora_dpo.data.pair import Pair, user
from lora_dpo.evaluation.policies import Policies
from lora_dpo.evaluation.preference import PairScores, calibration, pair_scores, questions_of, summarise
from lora_dpo.evaluation.scoring import score_both
from lora_dpo.evaluation.work import Work


def scores(before: list[list[float]], after: list[list[float]], groups: list[int]) -> PairScores:
    tokens = np.array([[2, 4]] * len(groups))
    return PairScores(np.array(before, float), np.array(after, float), tokens, np.array(groups))


def test_every_question_counts_the_same() -> None:
    # Question 0: margins 1, 3, -1 -> accuracy 2/3, margin 1. Question 1: margin -4 -> accuracy 0, margin -4.
    zero, after = [[0, 0]] * 4, [[1, 0], [3, 0], [-4, 0], [-1, 0]]
    found = summarise(scores(zero, after, [0, 0, 1, 0]), beta=0.1, seed=0)
    assert (found["n_pairs"], found["n_groups"]) == (4, 2)
    assert found["accuracy"]["after"] == pytest.approx((2 / 3 + 0) / 2)
    assert found["accuracy"]["before"] == 0.5  # ties count half
    assert found["margin"]["after"] == pytest.approx((1 - 4) / 2)
    assert found["margin"]["n"] == 2
    assert found["reward_accuracy"]["value"] == pytest.approx((2 / 3 + 0) / 2)
    assert found["reward_margin"]["value"] == pytest.approx(0.1 * (1 - 4) / 2)


def test_a_long_answer_is_not_worse_a_token() -> None:
    # In sum the better answer of two tokens is ahead, -4 to -6; a token it is behind, -2 to -1.5.
    found = summarise(scores([[-4, -6]], [[-4, -6]], [0]), beta=0.1, seed=0)
    assert (found["accuracy"]["after"], found["normalised_accuracy"]["after"]) == (1.0, 0.0)


def test_calibration() -> None:
    certain = np.log(0.9 / 0.1)  # P(better) = 0.9
    sure_and_right = calibration(np.array([certain] * 9 + [-certain]), np.arange(10))
    assert sure_and_right["error"] == pytest.approx(0.0)
    assert sure_and_right["confidence"] == pytest.approx([0.9])
    assert sure_and_right["accuracy"] == pytest.approx([0.9])
    too_sure = calibration(np.array([certain, -certain, 0.0, 0.0]), np.arange(4))
    assert too_sure["error"] == pytest.approx(0.5 * (0.9 - 0.5))
    assert too_sure["weight"] == pytest.approx([0.5, 0.5])
    one_question = calibration(np.array([certain, certain, -certain]), np.array([0, 0, 1]))
    assert one_question["accuracy"] == pytest.approx([0.5])  # two pairs of one question weigh as one of another


def pair(prompt: list[int], chosen: list[int], rejected: list[int], group: str) -> TokenisedPair:
    return TokenisedPair(Pair(user(group), str(chosen), str(rejected), group), prompt, chosen, rejected)


PAIRS = [
    pair([20, 21, 22], [30, 31], [40, 41, 42], "a"),
    pair([20, 21, 22], [30, 31], [50], "a"),
    pair([23, 24], [60, 61, 62, 63], [70], "b"),
    pair([23, 24], [70], [70], "b"),
]


@torch.no_grad()
def log_prob(model: torch.nn.Module, prompt: list[int], completion: list[int]) -> float:
    logits = model(input_ids=torch.tensor([prompt + completion])).logits[0].log_softmax(-1)
    return sum(logits[len(prompt) + n - 1, token].item() for n, token in enumerate(completion))


@pytest.fixture
def base(tiny_models) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(tiny_models("llama")).eval()


@pytest.fixture
def tuned(tiny_models) -> torch.nn.Module:
    """A model with an adapter that does something, in training mode as a trainer leaves it."""
    torch.manual_seed(1)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny_models("llama")), LoraConfig(target_modules="all-linear", r=4)
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.train()


def expected_margins(model: torch.nn.Module) -> list[float]:
    return [log_prob(model, p.prompt_ids, p.chosen_ids) - log_prob(model, p.prompt_ids, p.rejected_ids) for p in PAIRS]


def scored(policies: Policies, *, batch_size: int) -> PairScores:
    return pair_scores(PAIRS, score_both(Work(), policies, questions_of(PAIRS), batch_size=batch_size))


def margins(found: PairScores) -> list[list[float]]:
    return [(part[:, 0] - part[:, 1]).tolist() for part in (found.before, found.after)]


def test_before_is_the_base_model_and_after_is_not(base: torch.nn.Module, tuned: torch.nn.Module) -> None:
    found = scored(Policies(tuned), batch_size=2)
    before, after = margins(found)
    tuned.eval()
    assert before == pytest.approx(expected_margins(base), abs=1e-4)
    assert after == pytest.approx(expected_margins(tuned), abs=1e-4)
    assert after[3] == 0.0  # the same answer twice
    assert abs(after[0] - before[0]) > 0.1
    assert found.tokens.tolist() == [[2, 3], [2, 1], [4, 1], [1, 1]]
    assert found.groups.tolist() == [0, 0, 1, 1]


def test_an_answer_of_several_pairs_is_scored_once(base: torch.nn.Module) -> None:
    rows = []
    base.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(kwargs["input_ids"].size(0)), with_kwargs=True
    )
    scored(Policies(base, base), batch_size=100)
    assert sum(rows) == 2 * 5  # of 8: [30, 31] is in two pairs, [70] stands three times


def test_before_of_a_whole_model_is_the_given_one(base: torch.nn.Module, tuned: torch.nn.Module) -> None:
    before, after = margins(scored(Policies(tuned.merge_and_unload(), base), batch_size=2))
    assert before == pytest.approx(expected_margins(base), abs=1e-4)
    assert abs(after[0] - before[0]) > 0.1


def test_modes_and_adapter_are_as_they_were(tuned: torch.nn.Module) -> None:
    policies = Policies(tuned)
    with policies.before() as model:
        assert not model.training
        assert not torch.is_grad_enabled()
        off = model(input_ids=torch.tensor([[20, 21]])).logits
    assert tuned.training
    with policies.after() as model:
        assert not model.training
        on = model(input_ids=torch.tensor([[20, 21]])).logits
    assert tuned.training
    assert torch.is_grad_enabled()
    assert (on - off).abs().max() > 1e-2
    assert all(parameter.requires_grad == ("lora_" in name) for name, parameter in tuned.named_parameters())


def test_mode_is_as_it_was_after_an_error(tuned: torch.nn.Module) -> None:
    with pytest.raises(RuntimeError, match="stop"), Policies(tuned).before():
        raise RuntimeError("stop")
    assert tuned.training
