"""TRL's `DPOTrainer`, extended at three seams that tests/training/test_trl_contract.py pins."""

from __future__ import annotations

from typing import Any

import torch
from datasets import Dataset
from peft import PeftConfig
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from trl import DPOConfig, DPOTrainer

from lora_dpo.data.chat import TokenisedPair
from lora_dpo.model.precision import choose_dtype
from lora_dpo.recipe.schema import Recipe
from lora_dpo.training.dropout import set_adapter_dropout
from lora_dpo.training.zero_margin import check_first_loss

_TOKENS = ("prompt_ids", "chosen_ids", "rejected_ids")


class PreferenceTrainer(DPOTrainer):
    """Trains on pairs that are tokenised already, and checks the first loss.

    Losses, reference handling, metrics and checkpoints are TRL's.

    Args:
        recipe: The recipe.
        model: Base model, or a PEFT model whose adapter is continued.
        args: TRL's arguments.
        train_pairs: Training pairs.
        eval_pairs: Validation pairs; may be empty.
        tokenizer: The model's tokenizer.
        peft_config: Configuration of a fresh adapter, if there is to be one.
        callbacks: Further callbacks.
        reference: The frozen reference, where the whole model is trained.
    """

    def __init__(
        self,
        recipe: Recipe,
        model: PreTrainedModel,
        args: DPOConfig,
        train_pairs: list[TokenisedPair],
        eval_pairs: list[TokenisedPair],
        tokenizer: PreTrainedTokenizerBase,
        peft_config: PeftConfig | None,
        callbacks: list[TrainerCallback],
        reference: PreTrainedModel | None = None,
    ) -> None:
        self._recipe = recipe
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
        for trained_or_reference in filter(None, (self.model, self.ref_model)):
            set_adapter_dropout(trained_or_reference, recipe.adapter.dropout)

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        if set(_TOKENS) <= set(dataset.column_names):
            return dataset
        return super()._prepare_dataset(dataset, *args, **kwargs)

    def compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Computes TRL's loss; the first one of a fresh run is held against its zero-margin value."""
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        if self._first_loss_pending and model.training:
            self._first_loss_pending = False
            if self.state.global_step == 0 and self._recipe.adapter.dropout == 0:
                value = (loss[0] if isinstance(loss, tuple) else loss).item()
                if self.aux_loss_enabled:  # a mixture of experts adds its router's loss, which depends on the data
                    value -= self.router_aux_loss_coef * self._metrics["train"]["aux_loss"][-1]
                check_first_loss(value, self._recipe.dpo, choose_dtype(self._recipe.model.dtype))
        return loss


def as_dataset(pairs: list[TokenisedPair]) -> Dataset:
    """Returns the pairs in the columns that TRL's collator reads."""
    return Dataset.from_dict({name: [getattr(pair, name) for pair in pairs] for name in _TOKENS})
