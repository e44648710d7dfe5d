"""What a run needs before it may write anything: data, a launch that is what was asked for, the model, the trainer."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from peft import PeftConfig, PeftModel
from transformers import PreTrainedModel, PrinterCallback, TrainerCallback
from trl import DPOConfig, SFTConfig

from lora_dpo.console import err, is_main_process
from lora_dpo.data.build import Prepared, prepare
from lora_dpo.data.build_examples import PreparedExamples, prepare_examples
from lora_dpo.data.learnt import check_not_learnt
from lora_dpo.errors import UserError
from lora_dpo.model.adapter import continue_adapter, lora_config, merge_adapter
from lora_dpo.model.base import load_model, load_tokenizer, resolve
from lora_dpo.model.lineage import check_lineage, files_of, identify
from lora_dpo.model.stacked import Update
from lora_dpo.model.weights import fetched
from lora_dpo.recipe.batch import BatchPlan
from lora_dpo.recipe.schema import ModelSection, Recipe
from lora_dpo.recipe.stages import check_sft_is_done
from lora_dpo.training.agreement import on_first
from lora_dpo.training.arguments import training_arguments
from lora_dpo.training.batching import plan_steps
from lora_dpo.training.checkpoints import Checkpoint
from lora_dpo.training.resumable import Session
from lora_dpo.training.supervised import SupervisedTrainer
from lora_dpo.training.trainer import PreferenceTrainer, check_trees
from lora_dpo.training.world import World, check_world, confirm_world, world_table

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

AnyTrainer = PreferenceTrainer | SupervisedTrainer
"""What trains a run: pairs, or the examples of an SFT stage."""


@dataclass(frozen=True, slots=True)
class Setting:
    """A recipe with its data, as the model reads it, cut into steps."""

    recipe: Recipe
    plan: BatchPlan
    prepared: Prepared | PreparedExamples
    tokenizer: PreTrainedTokenizerBase

    @property
    def data_hashes(self) -> dict[str, str]:
        """The hash of each split's pairs, or examples."""
        return {split: counts["hash"] for split, counts in self.prepared.summary()["splits"].items()}


@dataclass(frozen=True, slots=True)
class Loaded:
    """The policy, in the processes that train it.

    Attributes:
        arguments: TRL's arguments.
        world: What runs.
        model: The base model, or a PEFT model whose adapter is continued.
        peft_config: Configuration of a fresh adapter, if there is to be one.
        below: What was put into the weights, if an adapter was: it is saved together with the fresh one.
    """

    arguments: DPOConfig | SFTConfig
    world: World
    model: PreTrainedModel | PeftModel
    peft_config: PeftConfig | None
    below: dict[str, Update] | None = None


def prepare_setting(recipe: Recipe) -> Setting:
    """Reads the recipe's data and plans its steps.

    Raises:
        UserError: The data cannot be read, or the global batch cannot be shared by the processes; or a held-out
            question was learnt by what the run begins with.
    """
    if recipe.run.stage == "dpo":
        check_sft_is_done(recipe)
    tokenizer = load_tokenizer(recipe.model)
    prepared = prepare_examples(recipe, tokenizer) if recipe.run.stage == "sft" else prepare(recipe, tokenizer)
    check_not_learnt(recipe, prepared.untokenised["test"])
    plan = plan_steps(recipe, prepared.splits["train"], int(os.environ.get("WORLD_SIZE", "1")))
    return Setting(recipe, plan, prepared, tokenizer)


def check_launch(setting: Setting, output: Path) -> tuple[DPOConfig | SFTConfig, World]:
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


def fetch_weights(recipe: Recipe) -> None:
    """Fetches what a run begins with from the Hub, where it is not here: what is not here has no hash.

    Every process does it by itself: those that share a cache wait for the first, and none waits in a collective, which
    would give up after a while.

    Args:
        recipe: The recipe.

    Raises:
        UserError: Something cannot be fetched.
    """
    fetched(resolve(recipe.model), recipe.model.revision)
    if recipe.adapter.init_from is not None:
        files_of(recipe.adapter.init_from)


def load(setting: Setting, arguments: DPOConfig | SFTConfig, world: World, start: Checkpoint | None = None) -> Loaded:
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
        fetch_weights(recipe)
        on_first(lambda: check_lineage(start_from, identify(recipe.model, setting.tokenizer)))
    section = _as_trained(recipe)
    if recipe.adapter.method == "full" and start is not None:  # its weights are in no adapter that is loaded later
        section = section.model_copy(update={"name": str(start.path), "revision": None})
    model = load_model(section, four_bit=recipe.adapter.method == "qlora")
    model.config._name_or_path = resolve(recipe.model)  # what the run began with, whatever was loaded
    _check_positions(setting, model)
    peft_config = below = None
    if start_from is not None and recipe.adapter.init_mode == "continue":
        model = continue_adapter(recipe.adapter, model)
    elif start_from is not None:
        model, below = merge_adapter(recipe.adapter, model)
    if recipe.adapter.method != "full" and not isinstance(model, PeftModel):
        peft_config = lora_config(recipe.adapter, model)
    check_trees(recipe, model, arguments)
    return Loaded(arguments, world, model, peft_config, below)


def make_trainer(
    setting: Setting, loaded: Loaded, *, callbacks: list[TrainerCallback], session: Session | None = None
) -> AnyTrainer:
    """Returns the trainer; a reference is computed live until `fill_reference`."""
    recipe, splits = setting.recipe, setting.prepared.splits
    # An adapter is compared with the model without it; a whole model with a second copy, loaded the same way.
    reference = load_model(_as_trained(recipe)) if recipe.adapter.method == "full" else None
    kind = SupervisedTrainer if recipe.run.stage == "sft" else PreferenceTrainer
    trainer = kind(
        recipe,
        setting.plan,
        loaded.model,
        loaded.arguments,
        splits["train"],
        splits["validation"],
        setting.tokenizer,
        loaded.peft_config,
        callbacks=callbacks,
        reference=reference,
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
    recipe, splits = setting.recipe, setting.prepared.splits
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    longest = max((one.length for split in splits.values() for one in split), default=0)
    if positions is not None and longest > positions:
        section = recipe.sft if recipe.run.stage == "sft" else recipe.dpo
        raise UserError(
            f"{longest} tokens are to be read at once, but {recipe.model.name} has only {positions} positions.",
            fix=f"Set {recipe.run.stage}.max_length to {positions} or less (now {section.max_length}).",
        )
