"""TRL's `SFTTrainer`, with the loop, the guards and the checkpoints that preferences are trained with."""

from __future__ import annotations

import torch
from datasets import Dataset
from peft import PeftConfig
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from trl import SFTConfig, SFTTrainer
from trl.models.utils import prepare_deepspeed, prepare_fsdp

from lora_dpo.data.chat import TokenisedExample
from lora_dpo.recipe.batch import BatchPlan
from lora_dpo.recipe.schema import Recipe
from lora_dpo.training.batching import example_columns
from lora_dpo.training.dropout import set_adapter_dropout
from lora_dpo.training.guarded import GuardedTrainer
from lora_dpo.training.resumable import ResumableTrainer, Session
from lora_dpo.training.trainer import batching_of, say_why_not
from lora_dpo.tree.examples import PlannedExamples, set_up_examples


class SupervisedTrainer(GuardedTrainer, ResumableTrainer, PlannedExamples, SFTTrainer):
    """Trains on examples that are tokenised already, over trees where the model can. The loss is TRL's.

    Args:
        recipe: The recipe of the SFT stage.
        plan: How steps are cut.
        model: The base model.
        args: TRL's arguments.
        train_examples: Training examples.
        eval_examples: Validation examples; may be empty.
        tokenizer: The model's tokenizer.
        peft_config: Configuration of the adapter; None trains the whole model.
        callbacks: Further callbacks.
        reference: The model before, for the report, where the whole model is trained.
        session: This process's share in a run with checkpoints; None is a training that leaves none.

    Raises:
        UserError: Trees are asked for, and the model cannot do them.
    """

    def __init__(
        self,
        recipe: Recipe,
        plan: BatchPlan,
        model: PreTrainedModel,
        args: SFTConfig,
        train_examples: list[TokenisedExample],
        eval_examples: list[TokenisedExample],
        tokenizer: PreTrainedTokenizerBase,
        peft_config: PeftConfig | None,
        callbacks: list[TrainerCallback],
        reference: PreTrainedModel | None = None,
        session: Session | None = None,
    ) -> None:
        self.session = session
        super().__init__(
            model=model,
            args=args,
            train_dataset=_as_dataset(train_examples),
            eval_dataset=_as_dataset(eval_examples) if eval_examples else None,
            processing_class=tokenizer,
            peft_config=peft_config,
            callbacks=callbacks,
        )
        self.ref_model = None if reference is None else self._beside(reference)
        for trained_or_before in filter(None, (self.model, self.ref_model)):
            set_adapter_dropout(trained_or_before, recipe.adapter.dropout)
        reason = set_up_examples(self, batching_of(recipe, plan), trees=recipe.train.trees != "off")
        say_why_not(reason, recipe, plan)
        self.guard(
            train_examples,
            hang_seconds=recipe.train.hang_timeout.total_seconds(),
            skip=recipe.train.on_nan == "skip",
            adapter=recipe.adapter.method != "full",
        )

    def _beside(self, reference: PreTrainedModel) -> torch.nn.Module:
        """Returns a model that is only read, divided as the trained one will be; TRL does so with a DPO reference."""
        if self.is_deepspeed_enabled:
            return prepare_deepspeed(reference, self.accelerator)
        if self.is_fsdp_enabled:
            return prepare_fsdp(reference, self.accelerator)
        return self.accelerator.prepare_model(reference, evaluation_mode=True)


def _as_dataset(examples: list[TokenisedExample]) -> Dataset:
    return Dataset.from_dict(example_columns(examples))
