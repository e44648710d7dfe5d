from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from trl import SFTConfig

from lora_dpo.errors import UserError
from lora_dpo.recipe.batch import BatchPlan, plan_batches
from lora_dpo.recipe.schema import Recipe
from lora_dpo.recipe.stages import stage_recipe
from lora_dpo.training.arguments import check_extra_arguments, steps_per_epoch, training_arguments

cpu_only = pytest.mark.skipif(torch.cuda.is_available(), reason="says what a CPU gets")


def recipe(**sections) -> Recipe:
    return Recipe.model_validate({"model": {"name": "m"}, "run": {"name": "r", "seed": 3}, **sections})


def arguments(given: Recipe, n_pairs: int = 100, n_validation: int = 10, world_size: int = 1):
    plan = plan_batches(given.train.global_batch_size, given.train.micro_batch_size, world_size)
    return training_arguments(given, plan, n_pairs, n_validation, Path("out"))


@cpu_only
def test_every_key_reaches_trl() -> None:
    given = recipe(
        dpo={
            "loss": ["robust", "sigmoid"],
            "loss_weights": [0.5, 2.0],
            "beta": 0.3,
            "label_smoothing": 0.1,
            "f_divergence": "js_divergence",
            "f_alpha": 0.25,
            "ld_alpha": 0.5,
            "discopop_tau": 0.2,
            "max_length": 77,
        },
        train={
            "learning_rate": 3e-5,
            "epochs": 2.5,
            "max_steps": 9,
            "global_batch_size": 12,
            "micro_batch_size": 3,
            "scheduler": "cosine",
            "warmup": 0.2,
            "weight_decay": 0.01,
            "max_grad_norm": 0.5,
            "optimizer": "adamw_torch_fused",
            "gradient_checkpointing": True,
            "logging_steps": 7,
            "evals_per_epoch": 0,
            "keep_checkpoints": 0,
        },
    )
    args = arguments(given)
    expected = {
        "output_dir": "out",
        "run_name": "r",
        "seed": 3,
        "data_seed": 3,
        "loss_type": ["robust", "sigmoid"],
        "loss_weights": [0.5, 2.0],
        "beta": 0.3,
        "label_smoothing": 0.1,
        "f_divergence_type": "js_divergence",
        "f_alpha_divergence_coef": 0.25,
        "ld_alpha": 0.5,
        "use_weighting": False,
        "discopop_tau": 0.2,
        "max_length": None,
        "learning_rate": 3e-5,
        "num_train_epochs": 2.5,
        "max_steps": 9,
        "per_device_train_batch_size": 3,
        "per_device_eval_batch_size": 3,
        "gradient_accumulation_steps": 4,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.2,
        "weight_decay": 0.01,
        "max_grad_norm": 0.5,
        "optim": "adamw_torch_fused",
        "logging_steps": 7,
        "eval_strategy": "no",
        "save_strategy": "no",
        "bf16": False,
        "fp16": False,
        "use_cpu": True,
        "ddp_find_unused_parameters": False,
        "logging_nan_inf_filter": False,
    }
    assert {key: getattr(args, key) for key in expected} == expected
    assert args.gradient_checkpointing


@cpu_only
def test_defaults() -> None:
    args = arguments(recipe())
    assert args.loss_type == ["sigmoid"]
    assert (args.beta, args.learning_rate, args.num_train_epochs, args.max_steps) == (0.1, 5e-6, 1, -1)
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps) == (8, 2)
    assert args.report_to == []


@pytest.mark.parametrize(("dtype", "flags"), [("bfloat16", (True, False)), ("float32", (False, False))])
def test_precision(dtype: str, flags: tuple[bool, bool]) -> None:
    args = arguments(recipe(model={"name": "m", "dtype": dtype}))
    assert (args.bf16, args.fp16) == flags


@pytest.mark.parametrize(
    ("n_pairs", "plan", "steps"),
    [
        (16, BatchPlan(16, 8, 2, 1), 1),
        (17, BatchPlan(16, 8, 2, 1), 2),  # 3 micro-batches, 2 a step
        (100, BatchPlan(16, 8, 2, 1), 7),  # 13 micro-batches
        (100, BatchPlan(16, 4, 1, 4), 7),  # 7 rounds of 4 processes
        (100, BatchPlan(64, 4, 4, 4), 2),
        (3, BatchPlan(64, 8, 8, 1), 1),
    ],
)
def test_steps_per_epoch(n_pairs: int, plan: BatchPlan, steps: int) -> None:
    assert steps_per_epoch(n_pairs, plan) == steps


@pytest.mark.parametrize(
    ("train", "steps"),
    [
        ({"evals_per_epoch": 1}, 7),  # 100 pairs in batches of 16 are 7 steps
        ({"evals_per_epoch": 2}, 4),
        ({"evals_per_epoch": 7}, 1),
        ({"evals_per_epoch": 50}, 1),
        ({"evals_per_epoch": 2, "eval_steps": 5}, 5),
        ({"evals_per_epoch": 0, "eval_steps": 5}, 5),
    ],
)
def test_evaluations(train: dict, steps: int) -> None:
    args = arguments(recipe(train=train))
    assert (args.eval_strategy, args.eval_steps) == ("steps", steps)


def test_no_evaluations() -> None:
    assert arguments(recipe(train={"evals_per_epoch": 0})).eval_strategy == "no"
    assert arguments(recipe(train={"eval_steps": 5}), n_validation=0).eval_strategy == "no"


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        ({}, ("steps", 7)),
        ({"save_steps": 3}, ("steps", 3)),
        ({"keep_checkpoints": None}, ("steps", 7)),
        ({"keep_checkpoints": 0}, ("no", 500)),
    ],
)
def test_checkpoints(train: dict, expected: tuple) -> None:
    args = arguments(recipe(train=train))
    assert (args.save_strategy, args.save_steps) == expected
    assert args.save_total_limit is None  # Trainer would count by the files' times


def test_further_arguments_of_trl_are_passed_on() -> None:
    args = arguments(recipe(train={"trl": {"dataloader_num_workers": 2, "adam_beta2": 0.95}}))
    assert args.dataloader_num_workers == 2
    assert args.adam_beta2 == 0.95


@pytest.mark.parametrize(
    ("name", "hint"),
    [("adam_beta22", "Did you mean 'adam_beta2'?"), ("dataloader_workers", "'dataloader_num_workers'")],
)
def test_unknown_argument_of_trl(name: str, hint: str) -> None:
    with pytest.raises(UserError, match=f"train.trl.{name} is no argument") as caught:
        arguments(recipe(train={"trl": {name: 1}}))
    assert hint in str(caught.value)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("beta", "dpo.beta"),
        ("loss_type", "dpo.loss"),
        ("max_length", "dpo.max_length"),
        ("learning_rate", "train.learning_rate"),
        ("num_train_epochs", "train.epochs"),
        ("gradient_accumulation_steps", "train.global_batch_size"),
        ("bf16", "model.dtype"),
        ("output_dir", "run.name"),
        ("seed", "run.seed"),
        ("report_to", "train.report_to"),
        ("disable_dropout", "adapter.dropout"),
        ("warmup_ratio", "train.warmup"),
    ],
)
def test_argument_with_a_key_of_its_own_names_it(name: str, key: str) -> None:
    with pytest.raises(UserError, match=f"train.trl.{name} is set by the recipe[\\s\\S]*Use {key} instead"):
        check_extra_arguments(recipe(train={"trl": {name: 1}}))


def test_what_trl_itself_refuses_is_said() -> None:
    with pytest.raises(UserError, match="TRL refuses these arguments"):
        arguments(recipe(train={"optimizer": "no_such_optimizer"}))


@pytest.mark.parametrize(
    ("name", "words"), [("tensorbord", "Did you mean 'tensorboard'?"), ("comet_ml", "pip install comet_ml")]
)
def test_a_tracker_that_is_not_there_is_refused(name: str, words: str) -> None:
    with pytest.raises(UserError, match=re.escape(words)):
        arguments(recipe(train={"report_to": [name]}))


@cpu_only
def test_the_sft_stage_s_keys_reach_trl() -> None:
    given = recipe(
        sft={"path": "a.csv", "learning_rate": 3e-4, "epochs": 3, "max_steps": 8, "trl": {"loss_type": "dft"}},
        train={
            "learning_rate": 1e-6,
            "scheduler": "cosine",
            "gradient_checkpointing": True,
            "trl": {"sync_ref_model": 0},
        },
        dpo={"reference": "live"},
    )
    made = arguments(stage_recipe(given, "sft"))
    assert isinstance(made, SFTConfig)
    assert (made.learning_rate, made.num_train_epochs, made.max_steps) == (3e-4, 3, 8)
    assert (made.loss_type, made.lr_scheduler_type, made.gradient_checkpointing) == ("dft", "cosine", True)
    assert (made.max_length, made.packing, made.padding_free) == (None, False, False)
    assert made.dataset_kwargs == {"skip_prepare_dataset": True}
    assert made.average_tokens_across_devices


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"packing": True}, "sft.trl.packing is set by the recipe.\nUse train.trees instead"),
        ({"learning_rate": 1}, "sft.trl.learning_rate is set by the recipe.\nUse sft.learning_rate instead"),
        ({"max_length": 1}, "Use sft.max_length instead"),
        ({"beta": 0.1}, "sft.trl.beta is no argument of TRL's SFTConfig"),
        ({"activation_offload": True}, "Did you mean 'activation_offloading'"),
    ],
)
def test_sft_arguments_that_are_no_business_of_trl(extra: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_extra_arguments(stage_recipe(recipe(sft={"path": "a.csv", "trl": extra}), "sft"))
