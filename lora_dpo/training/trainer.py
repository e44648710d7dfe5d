"""TRL's `DPOTrainer`, extended at three seams that tests/training/test_trl_contract.py pins."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from datasets import Dataset
from peft import PeftConfig, PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, TrainingArguments
from trl import DPOConfig, DPOTrainer

from lora_dpo.console import note, tracked
from lora_dpo.data.chat import TokenisedPair
from lora_dpo.errors import UserError
from lora_dpo.model.precision import choose_dtype
from lora_dpo.recipe.batch import BatchPlan
from lora_dpo.recipe.schema import Recipe
from lora_dpo.training.batching import TOKENS, token_columns
from lora_dpo.training.dropout import set_adapter_dropout
from lora_dpo.training.guarded import GuardedTrainer
from lora_dpo.training.reference import ReferenceCache
from lora_dpo.training.resumable import ResumableTrainer, Session
from lora_dpo.training.zero_margin import check_first_loss, check_first_loss_is_apart
from lora_dpo.tree.hf import Batching, PlannedTrainer, check_model, set_up
from lora_dpo.tree.ragged import Ragged
from lora_dpo.tree.sequences import Distinct


class PreferenceTrainer(GuardedTrainer, ResumableTrainer, PlannedTrainer, DPOTrainer):
    """Trains on pairs that are tokenised already, over trees where the model can, and checks the first loss.

    Losses and reference handling are TRL's. Until `fill_reference`, the reference is computed live.

    Args:
        recipe: The recipe.
        plan: How steps are cut.
        model: Base model, or a PEFT model whose adapter is continued.
        args: TRL's arguments.
        train_pairs: Training pairs.
        eval_pairs: Validation pairs; may be empty.
        tokenizer: The model's tokenizer.
        peft_config: Configuration of a fresh adapter, if there is to be one.
        callbacks: Further callbacks.
        reference: The frozen reference, where the whole model is trained.
        session: This process's share in a run with checkpoints; None is a training that leaves none.

    Attributes:
        reference_cache: Where reference log-probs are kept; `fill_reference` sets it.

    Raises:
        UserError: Trees are asked for, and the model cannot do them.
    """

    def __init__(
        self,
        recipe: Recipe,
        plan: BatchPlan,
        model: PreTrainedModel,
        args: DPOConfig,
        train_pairs: list[TokenisedPair],
        eval_pairs: list[TokenisedPair],
        tokenizer: PreTrainedTokenizerBase,
        peft_config: PeftConfig | None,
        callbacks: list[TrainerCallback],
        reference: PreTrainedModel | None = None,
        session: Session | None = None,
    ) -> None:
        self._recipe = recipe
        self.session = session
        self._first_loss_pending = True
        super().__init__(
            model=model,
            ref_model=reference,
            args=args,
            train_dataset=as_dataset(train_pairs),
            eval_dataset=as_dataset(eval_pairs) if eval_pairs else None,
            processing_class=tokenizer,
            peft_config=peft_config,
            callbacks=callbacks,
        )
        if recipe.dpo.reference_model == "base" and "ref" in getattr(self.model, "peft_config", {}):
            self.model.delete_adapter("ref")  # TRL's copy of the adapter; without it the reference has none
        for trained_or_reference in filter(None, (self.model, self.ref_model)):
            set_adapter_dropout(trained_or_reference, recipe.adapter.dropout)
        self._set_up_trees(plan)
        self.reference_cache: ReferenceCache | None = None
        self.guard(
            train_pairs,
            hang_seconds=recipe.train.hang_timeout.total_seconds(),
            skip=recipe.train.on_nan == "skip",
            adapter=recipe.adapter.method != "full",
        )

    def _set_up_trees(self, plan: BatchPlan) -> None:
        try:
            reason = set_up(self, batching_of(self._recipe, plan), trees=self._recipe.train.trees != "off")
        except ValueError as error:
            raise UserError(f"train.weight is group, but {error}.", fix="Use train.weight=pair.") from error
        say_why_not(reason, self._recipe, plan)

    def reference_values(self, wanted: Distinct) -> Ragged:
        """Returns the reference's log-probs, from the disk where they are known."""
        if self.reference_cache is None:
            return super().reference_values(wanted)
        return self.reference_cache.values(self, wanted)

    def progress(self, steps: Iterable[Any], description: str) -> Iterable[Any]:
        """Shows how far a pass over the data is."""
        return tracked(steps, description)

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        if set(TOKENS) <= set(dataset.column_names):
            return dataset
        return super()._prepare_dataset(dataset, *args, **kwargs)

    def compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Computes TRL's loss; the first one of a fresh run is held against its zero-margin value."""
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        weight = inputs["pair_weights"].sum().item() if self._first_loss_pending else 0.0
        looks = self._first_loss_pending and model.training and not self.left_out
        if looks and weight > 0:  # a micro-batch's part of the step's mean
            self._first_loss_pending = False
            if self.state.global_step == 0 and self._recipe.adapter.dropout == 0:
                value = (loss[0] if isinstance(loss, tuple) else loss).item() / weight
                if self.aux_loss_enabled:  # a mixture of experts adds its router's loss, which depends on the data
                    means, _ = self.tallies["train"].means(lambda totals: totals)
                    value -= self.router_aux_loss_coef * means["aux_loss"]
                self._check_first_loss(value)
        return loss

    def _check_first_loss(self, loss: float) -> None:
        recipe = self._recipe
        dtype, init_from = choose_dtype(recipe.model.dtype), recipe.adapter.init_from
        if recipe.dpo.reference_model == "base" and init_from is not None:
            check_first_loss_is_apart(loss, recipe.dpo, dtype, init_from)
        else:
            check_first_loss(loss, recipe.dpo, dtype)


def batching_of(recipe: Recipe, plan: BatchPlan) -> Batching:
    """Returns how a recipe's pairs, or examples, are put into micro-batches."""
    train = recipe.train
    return Batching(train.group_by_prompt, train.weight == "group", plan.tokens, plan.global_batch)


def say_why_not(reason: str | None, recipe: Recipe, plan: BatchPlan) -> None:
    """Says why a training goes on without trees, if it does.

    Args:
        reason: Why, or None.
        recipe: The recipe.
        plan: How steps are cut.

    Raises:
        UserError: The recipe insists on trees.
    """
    trees = recipe.train.trees
    if reason is not None and trees == "on":
        raise _cannot(reason)
    if reason is not None and trees == "auto":
        more = "" if plan.tokens is None else " If memory runs out, set train.micro_batch_size."
        note(f"Trees are off: {reason}.{more}")


def check_trees(recipe: Recipe, model: PreTrainedModel | PeftModel, args: TrainingArguments) -> None:
    """Stops before anything is written where the recipe asks for trees and the model cannot do them.

    Raises:
        UserError: It cannot.
    """
    if recipe.train.trees == "on" and (reason := check_model(model, args)) is not None:
        raise _cannot(reason)


def _cannot(reason: str) -> UserError:
    return UserError(
        "train.trees is on, but this model cannot use trees.",
        why=f"The reason: {reason}.",
        fix="Use train.trees=auto, which goes on without them.",
    )


def as_dataset(pairs: list[TokenisedPair]) -> Dataset:
    """Returns the pairs in the columns that TRL's collator reads."""
    return Dataset.from_dict(token_columns(pairs))
