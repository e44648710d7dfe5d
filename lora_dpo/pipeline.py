"""The whole of one run: data, model, training, evaluation, pictures, report."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import PartialState
from peft import PeftConfig
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl import DPOConfig

from lora_dpo.console import err, is_main_process, note
from lora_dpo.data.build import Prepared, prepare
from lora_dpo.data.preview import counts_table
from lora_dpo.errors import UserError
from lora_dpo.evaluation.generation import compare_answers
from lora_dpo.evaluation.plots import draw_training, read_metrics
from lora_dpo.evaluation.policies import Policies
from lora_dpo.evaluation.preference import compare_preference
from lora_dpo.evaluation.report import Report, print_report, write_report
from lora_dpo.model.adapter import continue_adapter, lora_config
from lora_dpo.model.base import load_model, load_tokenizer
from lora_dpo.recipe.batch import BatchPlan
from lora_dpo.recipe.loading import to_yaml
from lora_dpo.recipe.reference import check_reference_is_kept
from lora_dpo.recipe.run_folder import RunFolder, partial_path, write_json
from lora_dpo.recipe.schema import ModelSection, Recipe
from lora_dpo.training.arguments import training_arguments
from lora_dpo.training.batching import plan_steps
from lora_dpo.training.progress import TrainingLog
from lora_dpo.training.provenance import provenance
from lora_dpo.training.reference import fill_reference
from lora_dpo.training.saving import save_policy
from lora_dpo.training.trainer import PreferenceTrainer, check_trees
from lora_dpo.training.world import World, check_world, confirm_world, world_table

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class _Ready:
    """What is known and loaded before anything is written."""

    recipe: Recipe
    run: RunFolder
    plan: BatchPlan
    prepared: Prepared
    tokenizer: PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class _Loaded:
    """What a trainer is made of besides."""

    arguments: DPOConfig
    world: World
    model: PreTrainedModel
    peft_config: PeftConfig | None


def align(recipe: Recipe, *, overwrite: bool = False) -> Path:
    """Runs a recipe from its data to its report, on this process's rank.

    Nothing is written before data, model, adapter and arguments have been checked.

    Args:
        recipe: The recipe.
        overwrite: Replace an earlier run of the same name.

    Returns:
        The run folder.

    Raises:
        UserError: The recipe cannot be carried out as it stands.
    """
    run = RunFolder.of(recipe)
    run.check_free(overwrite=overwrite)
    ready = _prepare(recipe, run)
    if is_main_process():
        err.print(to_yaml(recipe).rstrip())
        err.print(counts_table(ready.prepared))
    loaded = _load(ready, run.checkpoints)
    lock = run.create(recipe, overwrite=overwrite) if is_main_process() else nullcontext()
    with lock, _old_results_kept_until_a_step(run):
        return _train_and_report(ready, loaded)


def compute_reference(recipe: Recipe) -> None:
    """Computes the reference log-probs of a recipe's pairs, on this process's rank; the run folder is not touched.

    Args:
        recipe: The recipe.

    Raises:
        UserError: The recipe cannot be carried out as it stands, or has no reference log-probs to keep.
    """
    check_reference_is_kept(recipe)
    ready = _prepare(recipe, RunFolder.of(recipe))
    with tempfile.TemporaryDirectory(prefix="lora-dpo-") as unused:  # the trainer makes a folder for checkpoints
        trainer = _trainer(ready, _load(ready, Path(unused)), callbacks=[])
        cache = fill_reference(trainer, recipe)
    if cache is None:
        raise UserError(
            f"The reference log-probs of {recipe.model.name} cannot be kept.",
            why="The model has no files that it could be known by.",
            fix="Save it to a folder with save_pretrained, and give that as model.name.",
        )
    note(f"{cache.computed:,} sequences were computed, {cache.found:,} were there already; they lie in {cache.folder}")


def _prepare(recipe: Recipe, run: RunFolder) -> _Ready:
    tokenizer = load_tokenizer(recipe.model)
    prepared = prepare(recipe, tokenizer)
    plan = plan_steps(recipe, prepared.splits["train"], int(os.environ.get("WORLD_SIZE", "1")))
    return _Ready(recipe, run, plan, prepared, tokenizer)


def _load(ready: _Ready, output: Path) -> _Loaded:
    """Checks what runs, and loads the model onto it."""
    recipe, plan = ready.recipe, ready.plan
    sizes = (len(ready.prepared.splits[split]) for split in ("train", "validation"))
    # Before the model: under ZeRO-3 the arguments say how it is to be loaded.
    arguments = training_arguments(recipe, plan, *sizes, output)
    world = check_world(recipe, plan, arguments)
    if is_main_process():
        err.print(world_table(recipe, plan, world))
    model, peft_config = _load_policy(ready)
    check_trees(recipe, model, arguments)
    return _Loaded(arguments, world, model, peft_config)


def _trainer(ready: _Ready, loaded: _Loaded, *, callbacks: list[TrainerCallback]) -> PreferenceTrainer:
    recipe, splits = ready.recipe, ready.prepared.splits
    trainer = PreferenceTrainer(
        recipe,
        ready.plan,
        loaded.model,
        loaded.arguments,
        splits["train"],
        splits["validation"],
        ready.tokenizer,
        loaded.peft_config,
        callbacks=callbacks,
        # An adapter's reference is the model without it; a whole model's is a second copy, loaded the same way.
        reference=load_model(_as_trained(recipe)) if recipe.adapter.method == "full" else None,
    )
    trainer.remove_callback(PrinterCallback)
    confirm_world(loaded.world, trainer.accelerator)
    return trainer


def _train_and_report(ready: _Ready, loaded: _Loaded) -> Path:
    recipe, run, plan, prepared = ready.recipe, ready.run, ready.plan, ready.prepared
    if is_main_process():
        prepared.write(run.data)
        write_json(run.provenance, provenance(recipe, plan, prepared.summary(), loaded.model))
    PartialState().wait_for_everyone()

    log = TrainingLog(run.metrics, plan.global_batch)
    trainer = _trainer(ready, loaded, callbacks=[log, _AfterFirstStep(run.discard_replaced)])
    if recipe.dpo.reference == "cached":
        fill_reference(trainer, recipe, run_copy=run.reference)
    began = time.monotonic()
    try:
        trainer.train()
    finally:
        log.close()
    seconds = time.monotonic() - began
    _save(ready, trainer)
    report = _evaluate(ready, trainer, seconds)
    if is_main_process():
        pictures = draw_training(read_metrics(run.metrics), run.plots)
        write_report(report, run, pictures)
        print_report(report.as_json(), run)
    PartialState().wait_for_everyone()
    return run.path


@contextmanager
def _old_results_kept_until_a_step(run: RunFolder) -> Iterator[None]:
    """Puts a replaced run's results back if the new one fails before its first step."""
    try:
        yield
    except BaseException:
        if is_main_process():
            run.restore_replaced()
        raise


class _AfterFirstStep(TrainerCallback):
    """Calls a function once, when rank 0 has made the first optimizer step."""

    def __init__(self, action: Callable[[], None]) -> None:
        self._action: Callable[[], None] | None = action

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Does it."""
        if self._action is not None and state.is_world_process_zero:
            self._action()
            self._action = None


def _load_policy(ready: _Ready) -> tuple[PreTrainedModel, PeftConfig | None]:
    """Loads the model; the second value is the configuration of a fresh adapter, if there is to be one."""
    adapter = ready.recipe.adapter
    model = load_model(_as_trained(ready.recipe), four_bit=adapter.method == "qlora")
    _check_positions(ready, model)
    if adapter.init_from is not None:
        return continue_adapter(adapter, model), None
    return model, None if adapter.method == "full" else lora_config(adapter, model)


def _as_trained(recipe: Recipe) -> ModelSection:
    """Returns the model section with the precision that the weights are held in.

    A whole model is trained on float32 weights: in bfloat16 most updates of a usual learning rate round to nothing.
    The forward pass still runs in the precision of the machine.
    """
    if recipe.adapter.method == "full" and recipe.model.dtype == "auto":
        return recipe.model.model_copy(update={"dtype": "float32"})
    return recipe.model


def _check_positions(ready: _Ready, model: PreTrainedModel) -> None:
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    longest = max((pair.length for pairs in ready.prepared.splits.values() for pair in pairs), default=0)
    if positions is not None and longest > positions:
        raise UserError(
            f"A pair has {longest} tokens, but {ready.recipe.model.name} has only {positions} positions.",
            fix=f"Set dpo.max_length to {positions} or less (now {ready.recipe.dpo.max_length}).",
        )


def _save(ready: _Ready, trainer: PreferenceTrainer) -> None:
    """Saves the adapter (or the whole model) beside its final place and renames it when it is whole."""
    target = ready.run.model if ready.recipe.adapter.method == "full" else ready.run.adapter
    partial = partial_path(target)
    save_policy(trainer, partial, ready.tokenizer)
    if is_main_process():
        partial.replace(target)


def _evaluate(ready: _Ready, trainer: PreferenceTrainer, seconds: float) -> Report:
    """Compares before and after on the held-out test split; every rank does the same, rank 0 reports."""
    options = ready.recipe.evaluation
    policies = Policies(
        trained=trainer.accelerator.unwrap_model(trainer.model),
        base=trainer.accelerator.unwrap_model(trainer.ref_model) if trainer.ref_model is not None else None,
    )
    test = ready.prepared.splits["test"]
    note(f"Comparing before and after on {len(test)} held-out pairs.")
    return Report(
        recipe=ready.recipe,
        data=ready.prepared.summary(),
        steps=trainer.state.global_step,
        seconds=seconds,
        preference=compare_preference(policies, test, options.batch_size) if test else None,
        samples=compare_answers(
            policies,
            ready.prepared.encoder,
            test,
            count=options.samples,
            max_new_tokens=options.max_new_tokens,
            batch_size=options.batch_size,
        ),
    )
