from __future__ import annotations

import math
from pathlib import Path
from typing import get_args

import pytest
import torch
from transformers import AutoModelForCausalLM, MixtralConfig

from lora_dpo.errors import UserError
from lora_dpo.recipe.schema import DPOSection, Loss
from lora_dpo.training.zero_margin import check_first_loss, zero_margin_loss
from tests.small import small_recipe, small_trainer
from tests.tiny import tiny_tokenizer

LN2 = 0.6931471805599453
# Worked out by hand at log-ratios of 0, where sigmoid(0) = 1/2 and -log sigmoid(0) = ln 2.
BY_HAND = [
    ({"loss": "sigmoid"}, LN2),
    ({"loss": "sigmoid", "beta": 0.5}, LN2),
    ({"loss": "sigmoid_norm"}, LN2),
    ({"loss": "hinge"}, 1.0),  # relu(1 - 0)
    ({"loss": "ipo", "beta": 0.1}, 25.0),  # (0 - 1 / (2 * 0.1)) ** 2
    ({"loss": "ipo", "beta": 0.5}, 1.0),
    ({"loss": "exo_pair", "label_smoothing": 0.1}, 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)),
    ({"loss": "exo_pair", "label_smoothing": 0.001}, 0.5 * math.log(0.5 / 0.999) + 0.5 * math.log(0.5 / 0.001)),
    ({"loss": "nca_pair"}, 2 * LN2),  # ln 2 + ln 2 / 2 + ln 2 / 2
    ({"loss": "robust"}, LN2),
    ({"loss": "robust", "label_smoothing": 0.2}, LN2),  # (0.8 ln 2 - 0.2 ln 2) / (1 - 2 * 0.2)
    ({"loss": "bco_pair"}, 2 * LN2),
    ({"loss": "sppo_hard", "beta": 0.1}, 50.0),  # (0 - 5) ** 2 + (0 + 5) ** 2
    ({"loss": "sppo_hard", "beta": 1.0}, 0.5),
    ({"loss": "aot"}, LN2),
    ({"loss": "aot", "label_smoothing": 0.3}, LN2),
    ({"loss": "aot_unpaired", "label_smoothing": 0.3}, LN2),
    ({"loss": "apo_zero"}, 1.0),  # (1 - 1/2) + 1/2
    ({"loss": "apo_down"}, 1.0),
    ({"loss": "discopop"}, 0.5 * LN2 + 0.5),  # half logistic ln 2, half exponential 1
    ({"loss": "sigmoid", "f_divergence": "forward_kl"}, LN2),
    ({"loss": "hinge", "f_divergence": "js_divergence"}, 1.0),
    ({"loss": "robust", "f_divergence": "alpha_divergence", "f_alpha": 0.5, "label_smoothing": 0.1}, LN2),
    ({"loss": "ipo", "f_divergence": "alpha_divergence", "f_alpha": 1.0, "beta": 0.2}, 6.25),
    ({"loss": "discopop", "f_divergence": "forward_kl", "discopop_tau": 0.5}, 0.5 * LN2 + 0.5),
    ({"loss": "exo_pair", "f_divergence": "js_divergence", "label_smoothing": 0.5 - 1e-9}, 0.0),
    ({"loss": "sigmoid_norm", "f_divergence": "js_divergence"}, LN2),
    ({"loss": "sigmoid", "ld_alpha": 0.5}, LN2),
    ({"loss": ["sigmoid", "hinge"]}, LN2 + 1.0),
    ({"loss": ["sigmoid", "bco_pair", "ipo"], "loss_weights": [0.5, 2.0, 0.1], "beta": 0.5}, 4.5 * LN2 + 0.1),
    ({"loss": ["apo_zero", "apo_down"], "loss_weights": [1.0, -0.25]}, 0.75),
]
DATA_DEPENDENT = [
    {"loss": "sft"},
    {"loss": ["sigmoid", "sft"], "loss_weights": [1.0, 0.1]},
    {"loss": "sigmoid", "use_weighting": True},
]


def name_of(dpo: dict) -> str:
    return " ".join(f"{key}={value}" for key, value in dpo.items()) if isinstance(dpo, dict) else ""


def first_loss_by_trl(dpo: dict, model: Path, folder: Path) -> float:
    """Returns the first loss that TRL itself computes with a fresh adapter."""
    trainer = small_trainer(small_recipe(model, folder, dpo=dpo))
    trainer._first_loss_pending = False  # TRL's number, whatever ours is
    trainer.model.train()
    batch = next(iter(trainer.get_train_dataloader()))
    return trainer.compute_loss(trainer.model, batch).item()


def test_every_loss_of_the_schema_is_here() -> None:
    seen = {loss for dpo, _ in BY_HAND for loss in ([dpo["loss"]] if isinstance(dpo["loss"], str) else dpo["loss"])}
    assert seen == set(get_args(Loss)) - {"sft"}


@pytest.mark.parametrize(("dpo", "expected"), BY_HAND, ids=name_of)
def test_closed_form_is_the_one_by_hand(dpo: dict, expected: float) -> None:
    assert zero_margin_loss(DPOSection(**dpo)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("dpo", "expected"), BY_HAND, ids=name_of)
def test_trl_starts_there(dpo: dict, expected: float, tiny_models, tmp_path: Path) -> None:
    assert first_loss_by_trl(dpo, tiny_models("llama"), tmp_path) == pytest.approx(expected, rel=2e-6, abs=2e-6)


@pytest.mark.parametrize("dpo", DATA_DEPENDENT, ids=name_of)
def test_losses_without_a_fixed_start(dpo: dict, tiny_models, tmp_path: Path) -> None:
    assert zero_margin_loss(DPOSection(**dpo)) is None
    check_first_loss(math.nan, DPOSection(**dpo), torch.float32)  # says nothing about it
    assert first_loss_by_trl(dpo, tiny_models("llama"), tmp_path) != pytest.approx(LN2, abs=1e-3)


@pytest.mark.parametrize("architecture", ["gpt2", "gptj", "gemma2", "qwen3", "tinyllama"])
def test_every_architecture_starts_at_ln_2(architecture: str, tiny_models, tmp_path: Path) -> None:
    """GPT-2's own dropout of 0.1 and Gemma-2's softcaps are the usual ways to miss it."""
    loss = first_loss_by_trl({"loss": "sigmoid"}, tiny_models(architecture), tmp_path)
    assert loss == pytest.approx(LN2, abs=2e-6)


@pytest.mark.parametrize(
    ("dtype", "inside", "outside"),
    [(torch.float32, 0.0009, 0.0011), (torch.float16, 0.019, 0.021), (torch.bfloat16, 0.049, 0.051)],
)
def test_tolerance_follows_the_precision(dtype: torch.dtype, inside: float, outside: float) -> None:
    for sign in (-1, 1):
        check_first_loss(LN2 + sign * inside, DPOSection(), dtype)
        with pytest.raises(UserError, match=r"sigmoid starts at 0\.693147"):
            check_first_loss(LN2 + sign * outside, DPOSection(), dtype)


def test_tolerance_grows_with_a_large_start() -> None:
    dpo = DPOSection(loss="sppo_hard", beta=0.1)  # starts at 50, so 1e-3 relative is 0.05
    check_first_loss(50.04, dpo, torch.float32)
    with pytest.raises(UserError, match=r"starts at 50\.0"):
        check_first_loss(50.06, dpo, torch.float32)


def test_nan_is_refused() -> None:
    with pytest.raises(UserError, match=r"first loss is nan[\s\S]*model\.dtype"):
        check_first_loss(math.nan, DPOSection(), torch.float32)


def test_a_run_with_another_reference_stops_at_its_first_step(tiny_models, tmp_path: Path) -> None:
    trainer = small_trainer(small_recipe(tiny_models("llama"), tmp_path))
    for name, parameter in trainer.model.named_parameters():
        if "lora_B" in name:  # 0 in a fresh adapter
            torch.nn.init.normal_(parameter, std=0.5)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    with pytest.raises(UserError, match="Before the first update policy and reference must agree"):
        trainer.train()
    assert all(torch.equal(before[name], value) for name, value in trainer.model.state_dict().items())


def test_only_the_first_loss_is_checked(tiny_models, tmp_path: Path) -> None:
    recipe = small_recipe(tiny_models("llama"), tmp_path, train={"learning_rate": 0.1, "max_steps": 4, "warmup": 0.0})
    trainer = small_trainer(recipe)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[0] == pytest.approx(LN2, abs=1e-5)
    assert abs(losses[-1] - LN2) > 1e-2  # would not pass the check


def test_router_loss_of_a_mixture_of_experts_is_no_mistake(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer("llama")
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        router_aux_loss_coef=0.5,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "mixtral")
    tokenizer.save_pretrained(tmp_path / "mixtral")
    trainer = small_trainer(small_recipe(tmp_path / "mixtral", tmp_path, train={"max_steps": 1}))
    trainer.train()
    (entry,) = (entry for entry in trainer.state.log_history if "loss" in entry)
    assert entry["aux_loss"] > 0.1
    assert entry["loss"] == pytest.approx(LN2 + 0.5 * entry["aux_loss"], abs=1e-4)
