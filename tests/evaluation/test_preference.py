from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from lora_dpo.data.chat import TokenisedPair
from lora_dpo.data.pair import Pair, user
from lora_dpo.evaluation.policies import Policies
from lora_dpo.evaluation.preference import compare_preference, margins, summarise


def test_every_question_counts_the_same() -> None:
    # Question a: margins 1, 3, -1 -> accuracy 2/3, margin 1. Question b: margin -4 -> accuracy 0, margin -4.
    result = summarise([1.0, 3.0, -4.0, -1.0], ["a", "a", "b", "a"])
    assert result == {
        "accuracy": pytest.approx((2 / 3 + 0) / 2),
        "margin": pytest.approx((1 - 4) / 2),
        "n_pairs": 4,
        "n_groups": 2,
    }


def test_tie_counts_half() -> None:
    # a: a tie and a win -> (1/2 + 1) / 2 = 3/4; b: a tie -> 1/2. Mean 5/8; margins (1 + 0) / 2.
    result = summarise([0.0, 2.0, 0.0], ["a", "a", "b"])
    assert result["accuracy"] == pytest.approx(0.625)
    assert result["margin"] == pytest.approx(0.5)


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


@torch.no_grad()
def test_margin_is_chosen_minus_rejected(base: torch.nn.Module) -> None:
    values = margins(base, PAIRS, 3, "")
    assert values == pytest.approx(expected_margins(base), abs=1e-4)
    assert values[3] == 0.0  # the same answer twice


@torch.no_grad()
def test_an_answer_of_several_pairs_is_scored_once(base: torch.nn.Module) -> None:
    rows = []
    base.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(kwargs["input_ids"].size(0)), with_kwargs=True
    )
    margins(base, PAIRS, 100, "")
    assert sum(rows) == 5  # of 8: [30, 31] is in two pairs, [70] stands three times


def test_before_is_the_base_model_and_after_is_not(base: torch.nn.Module, tuned: torch.nn.Module) -> None:
    result = compare_preference(Policies(tuned), PAIRS, 2)
    groups = [p.pair.group for p in PAIRS]
    assert result["before"]["margin"] == pytest.approx(summarise(expected_margins(base), groups)["margin"], abs=1e-4)
    tuned.eval()
    assert result["after"]["margin"] == pytest.approx(summarise(expected_margins(tuned), groups)["margin"], abs=1e-4)
    assert abs(result["after"]["margin"] - result["before"]["margin"]) > 0.1


def test_before_of_a_whole_model_is_the_given_one(base: torch.nn.Module, tuned: torch.nn.Module) -> None:
    whole = tuned.merge_and_unload()
    result = compare_preference(Policies(whole, base), PAIRS, 2)
    separate = summarise(expected_margins(base), [p.pair.group for p in PAIRS])
    assert result["before"] == {**separate, "margin": pytest.approx(separate["margin"], abs=1e-4)}
    assert abs(result["after"]["margin"] - result["before"]["margin"]) > 0.1


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
