"""What a run needs before it may write anything: data, a launch that is what was asked for, the model, the trainer."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from peft import PeftConfig, PeftModel
from transformers import PreTrainedModel, PrinterCallback, TrainerCallback
from trl import DPOConfig

from lora_dpo.console import err, is_main_process
from lora_dpo.data.build import Prepared, prepare
from lora_dpo.errors import UserError
from lora_dpo.model.adapter import continue_adapter, lora_config
from lora_dpo.model.base import load_model, load_tokenizer, resolve
from lora_dpo.model.lineage import check_lineage, identify
from lora_dpo.recipe.batch import BatchPlan
from lora_dpo.recipe.schema import ModelSection, Recipe
from lora_dpo.training.agreement import on_first
from lora_dpo.training.arguments import training_arguments
from lora_dpo.training.batching import plan_steps
from lora_dpo.training.checkpoints import Checkpoint
from lora_dpo.training.resumable import Session
from lora_dpo.training.trainer import PreferenceTrainer, check_trees
from lora_dpo.training.world import World, check_world, confirm_world, world_table

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Setting:
    """A recipe with its data, as the model reads it, cut into steps."""

    recipe: Recipe
    plan: BatchPlan
    prepared: Prepared
    tokenizer: PreTrainedTokenizerBase

    @property
    def data_hashes(self) -> dict[str, str]:
        """The hash of each split's pairs."""
        return {split: counts["hash"] for split, counts in self.prepared.summary()["splits"].items()}


@dataclass(frozen=True, slots=True)
class Loaded:
    """The policy, in the processes that train it.

    Attributes:
        arguments: TRL's arguments.
        world: What runs.
        model: The base model, or a PEFT model whose adapter is continued.
        peft_config: Configuration of a fresh adapter, if there is to be one.
    """

    arguments: DPOConfig
    world: World
    model: PreTrainedModel | PeftModel
    peft_config: PeftConfig | None


def prepare_setting(recipe: Recipe) -> Setting:
    """Reads the recipe's data and plans its steps.

    Raises:
        UserError: The data cannot be read, or the global batch cannot be shared by the processes.
    """
    tokenizer = load_tokenizer(recipe.model)
    prepared = prepare(recipe, tokenizer)
    plan = plan_steps(recipe, prepared.splits["train"], int(os.environ.get("WORLD_SIZE", "1")))
    return Setting(recipe, plan, prepared, tokenizer)


def check_launch(setting: Setting, output: Path) -> tuple[DPOConfig, World]:
    """Starts the process group, and checks that what runs is what was asked for; shows it once.

    Args:
        setting: Recipe and data.
        output: Folder that Trainer writes checkpoints into.

    Raises:
        UserError: Something else runs than was asked for.
    """
    recipe, plan, splits = setting.recipe, setting.plan, setting.prepared.splits
    arguments = training_arguments(recipe, plan, len(splits["train"]), len(splits["validation"]), output)
    world = check_world(recipe, plan, arguments)
    if is_main_process():
        err.print(world_table(recipe, plan, world))
    return arguments, world


def load(setting: Setting, arguments: DPOConfig, world: World, start: Checkpoint | None = None) -> Loaded:
    """Loads the policy.

    Args:
        setting: Recipe and data.
        arguments: TRL's arguments: under ZeRO-3 they say how the model is to be loaded.
        world: What runs.
        start: The checkpoint that the run goes on from.

    Raises:
        UserError: Model or adapter cannot be loaded, or do not fit the recipe.
    """
    recipe, start_from = setting.recipe, setting.recipe.adapter.init_from
    if start_from is not None:
        on_first(lambda: check_lineage(start_from, identify(recipe.model, setting.tokenizer)))
    section = _as_trained(recipe)
    if recipe.adapter.method == "full" and start is not None:  # its weights are in no adapter that is loaded later
        section = section.model_copy(update={"name": str(start.path), "revision": None})
    model = load_model(section, four_bit=recipe.adapter.method == "qlora")
    model.config._name_or_path = resolve(recipe.model)  # what the run began with, whatever was loaded
    _check_positions(setting, model)
    peft_config = None
    if start_from is not None:
        model = continue_adapter(recipe.adapter, model)
    elif recipe.adapter.method != "full":
        peft_config = lora_config(recipe.adapter, model)
    check_trees(recipe, model, arguments)
    return Loaded(arguments, world, model, peft_config)


def make_trainer(
    setting: Setting, loaded: Loaded, *, callbacks: list[TrainerCallback], session: Session | None = None
) -> PreferenceTrainer:
    """Returns the trainer; its reference is computed live until `fill_reference`."""
    recipe, splits = setting.recipe, setting.prepared.splits
    trainer = PreferenceTrainer(
        recipe,
        setting.plan,
        loaded.model,
        loaded.arguments,
        splits["train"],
        splits["validation"],
        setting.tokenizer,
        loaded.peft_config,
        callbacks=callbacks,
        # An adapter's reference is the model without it; a whole model's is a second copy, loaded the same way.
        reference=load_model(_as_trained(recipe)) if recipe.adapter.method == "full" else None,
        session=session,
    )
    trainer.remove_callback(PrinterCallback)
    confirm_world(loaded.world, trainer.accelerator)
    return trainer


def _as_trained(recipe: Recipe) -> ModelSection:
    """Returns the model section with the precision that the weights are held in.

    A whole model is trained on float32 weights: in bfloat16 most updates of a usual learning rate round to nothing.
    The forward pass still runs in the precision of the machine.
    """
    if recipe.adapter.method == "full" and recipe.model.dtype == "auto":
        return recipe.model.model_copy(update={"dtype": "float32"})
    return recipe.model


def _check_positions(setting: Setting, model: PreTrainedModel) -> None:
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    longest = max((pair.length for pairs in setting.prepared.splits.values() for pair in pairs), default=0)
    if positions is not None and longest > positions:
        raise UserError(
            f"A pair has {longest} tokens, but {setting.recipe.model.name} has only {positions} positions.",
            fix=f"Set dpo.max_length to {positions} or less (now {setting.recipe.dpo.max_length}).",
        )
