"""The arms: one DPO step, computed in five ways by the same trainer on the same pairs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import trl.trainer.utils
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import PrinterCallback
from trl import DPOConfig, DPOTrainer

from benchmarks.workloads import Step, TokenPair
from lora_dpo.model.adapter import lora_config
from lora_dpo.recipe.schema import AdapterSection
from lora_dpo.tree import enable

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to compute the step.

    Attributes:
        key: Its letter.
        title: What it is, in a few words.
        checkpointing: Activations are computed again in the backward pass.
        cached_reference: The reference's log-probs are computed before the training.
        compact_head: TRL scores only the answers' tokens, as it does on a GPU.
        trees: Ours.
    """

    key: str
    title: str
    checkpointing: bool = False
    cached_reference: bool = False
    compact_head: bool = False
    trees: bool = False


ARMS = {
    arm.key: arm
    for arm in (
        Arm("A", "TRL, defaults", checkpointing=True),
        Arm("B", "TRL, tuned", cached_reference=True),
        Arm("Bc", "TRL, tuned, compact head", cached_reference=True, compact_head=True),
        Arm("C", "ours, reference live", trees=True),
        Arm("D", "ours, reference cached", cached_reference=True, trees=True),
    )
}


class PairTrainer(DPOTrainer):
    """TRL's trainer for pairs that are tokens already."""

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        return dataset


def build_trainer(
    arm: Arm, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, steps: list[Step], folder: Path
) -> DPOTrainer:
    """Returns an arm's trainer; all arms start from the same weights and take the same pairs in the same steps.

    LoRA r 16, alpha 32 on all linear layers, AdamW, no dropout; the precision is the model's.

    Args:
        arm: The arm.
        model: The base model, on its device.
        tokenizer: Its tokenizer.
        steps: Pairs of each optimizer step.
        folder: For what the trainer may write.

    Raises:
        RuntimeError: Ours went on without trees.
    """
    if arm.compact_head:
        _force_compact_head()
    on_cpu = model.device.type == "cpu"
    arguments = DPOConfig(
        output_dir=str(folder),
        per_device_train_batch_size=len(steps[0]),
        max_steps=len(steps),
        gradient_checkpointing=arm.checkpointing,
        precompute_ref_log_probs=arm.cached_reference,
        bf16=model.dtype == torch.bfloat16,
        max_length=None,
        learning_rate=1e-4,  # with TRL's 1e-6 the losses would hardly move in a few steps
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=on_cpu,
        dataloader_pin_memory=not on_cpu,
    )
    trainer = PairTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list([pair._asdict() for step in steps for pair in step]),
        processing_class=tokenizer,
        peft_config=lora_config(AdapterSection(), model),
    )
    trainer.remove_callback(PrinterCallback)
    draw_adapter(trainer.model)
    trainer.progress = lambda steps, description: steps  # ours would show bars
    if arm.trees and (reason := enable(trainer)) is not None:
        raise RuntimeError(f"There are no trees: {reason}.")
    trainer.get_train_dataloader = lambda: _loader(trainer)
    return trainer


def draw_adapter(model: torch.nn.Module) -> None:
    """Sets every LoRA matrix to the same values in every arm; B is not 0, so that all gradients count.

    With standard deviations 1 / sqrt(inputs) in A and 0.01 in B, an adapter's output is 8 % as large as its input.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, part in model.named_parameters():
            if part.requires_grad:
                deviation = 0.01 if "lora_B" in name else part.shape[1] ** -0.5
                part.copy_(torch.randn(part.shape, generator=generator) * deviation)


def batch_of(trainer: DPOTrainer, step: int) -> dict[str, Any]:
    """Returns a step's pairs as its trainer collates them."""
    return trainer.data_collator(_rows(trainer, step))


def _rows(trainer: DPOTrainer, step: int) -> list[dict[str, Any]]:
    size = trainer.args.per_device_train_batch_size
    names = {*TokenPair._fields, "ref_chosen_logps", "ref_rejected_logps"}
    rows = trainer.train_dataset.select(range(step * size, (step + 1) * size)).to_list()
    return [{name: row[name] for name in row if name in names} | {"weight": 1 / size} for row in rows]


def _loader(trainer: DPOTrainer) -> DataLoader:
    # Accelerate collates one batch ahead. A last batch that nobody trains on gives each measured step one to collate.
    steps = [*range(trainer.args.max_steps), 0]
    loader = DataLoader(
        steps,
        batch_size=1,
        collate_fn=lambda chosen: batch_of(trainer, chosen[0]),
        pin_memory=trainer.args.dataloader_pin_memory,
    )
    return trainer.accelerator.prepare(loader)


def _force_compact_head() -> None:
    """Makes TRL gather the answers' positions before the head on a CPU as well, for the rest of this process.

    Only the decision is changed: the kernel's module has a name of its own for the same question, and goes on in torch.
    """
    trl.trainer.utils._use_triton = lambda device: True
