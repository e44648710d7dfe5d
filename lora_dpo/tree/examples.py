"""SFT over trees: a micro-batch of examples is a forest, which packs them without padding and without a seam.

Each example is a branch that sees its own beginning alone, so no attention kernel can leak from one into the next; what
several begin with is computed once. Reading order: `set_up_examples`, then `PlannedExamples`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lora_dpo.tree.collate import PlanCollator
from lora_dpo.tree.hf import teach_trainer
from lora_dpo.tree.pairs import NOT_SCORED, PairTokens, example_tokens
from lora_dpo.tree.planned import Batching, PlannedLoop, tally_sharing
from lora_dpo.tree.tally import Tally


def set_up_examples(trainer: PlannedExamples, batching: Batching, *, trees: bool = True) -> str | None:
    """Gives an SFT trainer its collator and batching, and its model its forward over trees.

    Args:
        trainer: A trainer that has not started, whose collator pads.
        batching: How examples are put into micro-batches.
        trees: Whether to use trees; without them batching and metrics remain.

    Returns:
        None, or why trees are off.
    """
    reason = teach_trainer(trainer, trees=trees)
    trainer.data_collator = ExampleCollator(trainer.data_collator, trees=reason is None)
    trainer.batching, trainer.tallies = batching, {}
    return reason


class PlannedExamples(PlannedLoop):
    """What goes in front of an `SFTTrainer` class; its data sets have `input_ids`, `labels` and `group`.

    The loss stays TRL's: the mean over the tokens of a step, whatever the cut.
    """

    def planned(self, rows: Any) -> list[PairTokens]:
        """Returns what the planner sees of a data set with examples."""
        return example_tokens(rows)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Computes TRL's loss of one micro-batch; its metrics are kept for the log."""
        inputs = dict(inputs)
        weights = inputs.pop("pair_weights", None)
        if weights is None:  # a batch of somebody else's collator
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        with self._metrics_kept_here() as metrics:
            result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        loss, *others = result if return_outputs else (result,)
        loss = loss.as_subclass(Tensor)
        self._tally("train" if self.model.training else "eval", metrics, inputs, weights[0] > 0, loss.detach())
        return (loss, *others) if return_outputs else loss

    def _tally(
        self, mode: str, metrics: dict[str, list[Any]], inputs: dict[str, Any], real: Tensor, loss: Tensor
    ) -> None:
        """Adds a micro-batch's means over its tokens."""
        tally, scored = self.tallies.setdefault(mode, Tally()), (inputs["labels"][:, 1:] != NOT_SCORED).sum()
        for name, values in metrics.items():
            if name != "num_tokens":
                value = values[-1]
                tally.add(name, value.as_subclass(Tensor) if isinstance(value, Tensor) else value, scored)
        if mode == "eval":  # in training it is a part of the step's mean, which Trainer adds up
            tally.add("loss", loss, scored)
        tally.add("tokens", 0.0, (inputs["attention_mask"] * real[:, None]).sum())
        tally_sharing(tally, inputs)


class ExampleCollator(PlanCollator):
    """TRL's collator of an SFT trainer, with the batch's tree where trees are on."""

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Returns TRL's padded batch; an example that only fills a place is not scored."""
        return super().__call__([_as_filler(one) if one.get("weight", 1.0) == 0 else one for one in examples])

    def scored(self, batch: dict[str, Any]) -> Tensor:
        """Returns where a batch has labels."""
        return batch["labels"] != NOT_SCORED


def _as_filler(example: dict[str, Any]) -> dict[str, Any]:
    return {**example, "labels": [NOT_SCORED] * len(example["labels"])}
