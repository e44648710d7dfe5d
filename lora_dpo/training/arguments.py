"""From a recipe to TRL's arguments: its `DPOConfig`, or its `SFTConfig` for the SFT stage."""

from __future__ import annotations

import dataclasses
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers.integrations.integration_utils import (
    INTEGRATION_TO_CALLBACK,
    get_available_reporting_integrations,
)
from trl import DPOConfig, SFTConfig

from lora_dpo.errors import UserError, did_you_mean
from lora_dpo.model.precision import choose_dtype
from lora_dpo.recipe.batch import BatchPlan
from lora_dpo.recipe.schema import DPOSection, Recipe, Section, SFTSection, Stage, TrainSection

_HAVE_A_KEY = {
    "bf16": "model.dtype",
    "data_seed": "run.seed",
    "ddp_timeout": "train.hang_timeout",
    "disable_dropout": "adapter.dropout",
    "eval_on_start": "train.evals_per_epoch",
    "eval_steps": "train.eval_steps",
    "eval_strategy": "train.evals_per_epoch",
    "fp16": "model.dtype",
    "gradient_accumulation_steps": "train.global_batch_size",
    "hub_token": "the environment or .env",
    "learning_rate": "train.learning_rate",
    "logging_strategy": "train.logging_steps",
    "lr_scheduler_type": "train.scheduler",
    "num_train_epochs": "train.epochs",
    "optim": "train.optimizer",
    "output_dir": "run.name",
    "per_device_eval_batch_size": "train.micro_batch_size",
    "per_device_train_batch_size": "train.tokens_per_micro_batch",
    "push_to_hub": "hub.repo",
    "resume_from_checkpoint": "run.name",
    "run_name": "run.name",
    "save_steps": "train.save_steps",
    "save_strategy": "train.save_steps",
    "save_only_model": "train.keep_checkpoints",
    "save_total_limit": "train.keep_checkpoints",
    "seed": "run.seed",
    "truncation_mode": "data.over_length",
    "warmup_ratio": "train.warmup",
    "warmup_steps": "train.warmup",
}
"""Arguments of TRL that the recipe sets from a key of another name."""


@dataclass(frozen=True, slots=True)
class _Kind:
    """The arguments of a stage's trainer.

    Attributes:
        config: TRL's class of them.
        key: Where the recipe takes further ones.
        have_a_key: Arguments that the recipe sets from a key of another name.
        sections: Sections whose keys are arguments of the same name.
    """

    config: type[DPOConfig] | type[SFTConfig]
    key: str
    have_a_key: dict[str, str]
    sections: dict[str, type[Section]]


_KINDS: dict[Stage, _Kind] = {
    "dpo": _Kind(
        DPOConfig,
        "train.trl",
        _HAVE_A_KEY
        | {
            "beta": "dpo.beta",
            "f_alpha_divergence_coef": "dpo.f_alpha",
            "f_divergence_type": "dpo.f_divergence",
            "loss_type": "dpo.loss",
            "precompute_ref_log_probs": "dpo.reference",
        },
        {"dpo": DPOSection, "train": TrainSection},
    ),
    "sft": _Kind(
        SFTConfig,
        "sft.trl",
        _HAVE_A_KEY
        | {
            "learning_rate": "sft.learning_rate",
            "num_train_epochs": "sft.epochs",
            "packing": "train.trees",
            "eval_packing": "train.trees",
            "padding_free": "train.trees",
        },
        {"sft": SFTSection, "train": TrainSection},
    ),
}


def check_extra_arguments(recipe: Recipe) -> None:
    """Checks the recipe's further arguments of TRL against the fields that there really are.

    Raises:
        UserError: A name is unknown, or belongs to another key of the recipe.
    """
    kind = _KINDS[recipe.run.stage]
    known = {field.name for field in dataclasses.fields(kind.config) if field.init}
    for name in recipe.train.trl:
        own_key = kind.have_a_key.get(name) or _key_of_same_name(name, kind)
        if own_key:
            raise UserError(f"{kind.key}.{name} is set by the recipe.", fix=f"Use {own_key} instead.")
        if name not in known:
            raise UserError(
                f"{kind.key}.{name} is no argument of TRL's {kind.config.__name__}.",
                fix=did_you_mean(name, sorted(known - kind.have_a_key.keys())),
            )


def _key_of_same_name(name: str, kind: _Kind) -> str | None:
    sections = ((section, model.model_fields) for section, model in kind.sections.items())
    return next((f"{section}.{name}" for section, fields in sections if name in fields and name != "trl"), None)


def steps_per_epoch(n_pairs: int, plan: BatchPlan) -> int:
    """Returns the optimizer steps of one pass over `n_pairs`; the last one may be smaller."""
    return math.ceil(n_pairs / plan.global_batch)


def training_arguments(
    recipe: Recipe, plan: BatchPlan, n_pairs: int, n_validation: int, output: Path
) -> DPOConfig | SFTConfig:
    """Builds TRL's arguments; what the recipe's keys do not cover comes from `train.trl`, or from `sft.trl`.

    Args:
        recipe: The recipe.
        plan: How the global batch is cut.
        n_pairs: Training pairs, or examples.
        n_validation: Validation pairs, or examples; without any there are no evaluations.
        output: Folder that Trainer writes checkpoints into.

    Raises:
        UserError: The recipe names an unknown argument, or TRL refuses a combination.
    """
    check_extra_arguments(recipe)
    _check_trackers(recipe.train.report_to)
    _check_launcher_s_file()
    per_epoch = steps_per_epoch(n_pairs, plan)
    arguments = {
        "output_dir": str(output),
        "run_name": recipe.run.name,
        "seed": recipe.run.seed,
        "data_seed": recipe.run.seed,
        "use_cpu": not torch.cuda.is_available(),
        "dataloader_pin_memory": torch.cuda.is_available(),
        # A worker builds trees while the GPU computes; beside a CPU that computes it would only take a core away.
        "dataloader_num_workers": int(torch.cuda.is_available()),
        "disable_tqdm": True,
        "ddp_find_unused_parameters": False,
        # The watch for hangs speaks first, and with more words.
        "ddp_timeout": max(1800, 2 * int(recipe.train.hang_timeout.total_seconds())),
        "logging_nan_inf_filter": False,  # a NaN is to be seen in the log, not averaged away
        **_precision(recipe),
        **(_WHOLE_EXAMPLES if recipe.run.stage == "sft" else _loss(recipe)),
        **_schedule(recipe, plan),
        **_evaluations(recipe, per_epoch, n_validation),
        **_checkpoints(recipe, per_epoch),
    }
    kind = _KINDS[recipe.run.stage]
    try:
        config = kind.config(**{**arguments, **recipe.train.trl})
    except (ValueError, TypeError) as error:
        raise UserError(
            f"TRL refuses these arguments: {error}", fix=f"Correct {kind.key} or the key it names."
        ) from error
    # A single process that sees several GPUs would wrap the model in DataParallel, and multiply the batch by them.
    config._n_gpu = min(config.n_gpu, 1)
    _join_deepspeed(config)
    if recipe.adapter.method != "full":
        _reenter_under_zero3(config)
    return config


def _reenter_under_zero3(config: DPOConfig | SFTConfig) -> None:
    """Has an adapter's checkpointed layers recomputed by re-entering them, which ZeRO-3 needs.

    TRL says so under a name that Trainer no longer reads, and the backward pass would find weights of another shape.
    """
    plugin = config.deepspeed_plugin
    if config.gradient_checkpointing and plugin is not None and plugin.zero_stage == 3:
        wanted = {**(config.gradient_checkpointing_kwargs or {}), "use_reentrant": True}
        config.gradient_checkpointing_kwargs = config.activation_checkpointing_kwargs = wanted


def _join_deepspeed(config: DPOConfig | SFTConfig) -> None:
    """Shows DeepSpeed the process group, of which it keeps a view of its own.

    Where `accelerate launch` did not start the training it would see one process, and ZeRO-3 cut the weights for one.
    """
    if config.deepspeed_plugin is not None and torch.distributed.is_initialized():
        from deepspeed import comm

        if not comm.is_initialized():
            comm.init_distributed(torch.distributed.get_backend(), auto_mpi_discovery=False)


def _check_launcher_s_file() -> None:
    """Checks that the file is there which the launch names; those of accelerate_configs/ name it from the checkout."""
    file = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "")
    if file.endswith(".json") and not Path(file).expanduser().is_file():
        raise UserError(
            f"The launch names DeepSpeed's file {file}, which is not there.",
            why="The files of accelerate_configs/ name it relative to the checkout, and this is another folder.",
            fix="Start it in the checkout, add --deepspeed_config_file PATH, or let `lora-dpo dpo` write the command.",
        )


def _check_trackers(names: list[str]) -> None:
    for name in names:
        if name not in INTEGRATION_TO_CALLBACK:
            raise UserError(f"train.report_to names '{name}'.", fix=did_you_mean(name, sorted(INTEGRATION_TO_CALLBACK)))
        if name not in get_available_reporting_integrations():
            raise UserError(f"train.report_to {name} needs a package of that name.", fix=f"Run: pip install {name}")


def _precision(recipe: Recipe) -> dict[str, Any]:
    dtype = choose_dtype(recipe.model.dtype)
    return {"bf16": dtype == torch.bfloat16, "fp16": dtype == torch.float16}


def _loss(recipe: Recipe) -> dict[str, Any]:
    dpo = recipe.dpo
    return {
        "loss_type": list(dpo.loss),
        "loss_weights": dpo.loss_weights,
        "beta": dpo.beta,
        "label_smoothing": dpo.label_smoothing,
        "f_divergence_type": dpo.f_divergence,
        "f_alpha_divergence_coef": dpo.f_alpha,
        "ld_alpha": dpo.ld_alpha,
        "use_weighting": dpo.use_weighting,
        "discopop_tau": dpo.discopop_tau,
        "max_length": None,  # pairs fit already; TRL would cut the end of the answer
        "disable_dropout": True,  # also while TRL precomputes the reference; `set_adapter_dropout` sets the adapter's
    }


_WHOLE_EXAMPLES = {
    "max_length": None,  # examples fit already
    "dataset_kwargs": {"skip_prepare_dataset": True},  # they are tokens, and have labels on the answers alone
    "pad_to_multiple_of": None,
}


def _schedule(recipe: Recipe, plan: BatchPlan) -> dict[str, Any]:
    train = recipe.train
    return {
        "per_device_train_batch_size": plan.micro_batch,
        "per_device_eval_batch_size": plan.micro_batch,
        "gradient_accumulation_steps": plan.accumulation,
        "learning_rate": train.learning_rate,
        "num_train_epochs": train.epochs,
        "max_steps": train.max_steps or -1,
        "lr_scheduler_type": train.scheduler,
        "warmup_steps": train.warmup,
        "weight_decay": train.weight_decay,
        "max_grad_norm": train.max_grad_norm,
        "optim": train.optimizer,
        "gradient_checkpointing": train.gradient_checkpointing,
        "logging_steps": train.logging_steps,
        "report_to": train.report_to or "none",
    }


def _evaluations(recipe: Recipe, per_epoch: int, n_validation: int) -> dict[str, Any]:
    train = recipe.train
    if n_validation == 0 or (train.evals_per_epoch == 0 and train.eval_steps is None):
        return {"eval_strategy": "no"}
    steps = train.eval_steps or math.ceil(per_epoch / train.evals_per_epoch)
    return {"eval_strategy": "steps", "eval_steps": steps}


def _checkpoints(recipe: Recipe, per_epoch: int) -> dict[str, Any]:
    train = recipe.train
    if train.keep_checkpoints == 0:
        return {"save_strategy": "no"}
    return {
        "save_strategy": "steps",
        "save_steps": train.save_steps or per_epoch,  # which of them are kept is not left to Trainer
    }
