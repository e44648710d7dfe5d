"""Trains tiny models for a few steps on every process, and leaves what came out; started by a launcher.

torchrun --nproc_per_node 2 tests/distributed/train_small.py '[{"model": ..., "folder": ..., "sections": {...}}]'
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor, distribute_tensor

from lora_dpo.model.base import load_tokenizer
from lora_dpo.recipe.schema import Recipe
from lora_dpo.training.agreement import leave_together
from lora_dpo.training.saving import save_policy
from tests.small import small_recipe, small_trainer


def main(jobs: list[dict[str, Any]]) -> None:
    torch.set_num_threads(1)
    for job in jobs:
        trainer = train(job["model"], Path(job["folder"]), job["sections"])
    trainer.accelerator.wait_for_everyone()
    leave_together()


def train(model: str, folder: Path, sections: dict[str, Any]) -> Any:
    recipe: Recipe = small_recipe(model, folder, **{name: keys for name, keys in sections.items() if name != "model"})
    recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update=sections.get("model", {}))})
    # Of several pairs a question, so that micro-batches of about equally many tokens have different numbers of pairs.
    size = {"count": 11, "validation": 5, "per_question": 4}
    world = int(os.environ.get("WORLD_SIZE", "1"))
    trainer = small_trainer(recipe, **size, world_size=world, before_loading=as_on_gpus)
    # A fresh B is zero, and so is every gradient of A; with another one the first loss is not ln 2.
    trainer._first_loss_pending = False
    torch.manual_seed(0)
    zero3 = trainer.is_deepspeed_enabled and any(hasattr(value, "ds_id") for value in trainer.model.parameters())
    for name, value in trainer.model.named_parameters():
        if "lora_B" in name:
            fresh = torch.randn(value.ds_shape if zero3 else value.shape) * 0.05
            fill(value, fresh, zero3)
    trainer.train()
    save_policy(trainer, folder / "saved", load_tokenizer(recipe.model))
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if trainer.is_world_process_zero():
        whole = recipe.adapter.method == "full"
        trained = {name: value.cpu() for name, value in state.items() if whole or "lora_" in name}
        torch.save(trained, folder / "adapter.pt")
        log = {
            "log": trainer.state.log_history,
            "world": trainer.accelerator.num_processes,
            "strategy": str(trainer.accelerator.distributed_type),
            "divided": sum(isinstance(value, DTensor) for value in trainer.model.parameters()),
            "reference": trainer.train_dataset["ref_chosen_logps"][:] if recipe.dpo.reference == "cached" else [],
        }
        (folder / "log.json").write_text(json.dumps(log))
    return trainer


def as_on_gpus() -> None:
    """Lets Accelerate take FSDP up, which it does for GPUs alone; its own code then divides the model over gloo."""
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def fill(parameter: torch.nn.Parameter, values: torch.Tensor, zero3: bool) -> None:
    if isinstance(parameter, DTensor):
        values = distribute_tensor(values, parameter.device_mesh, parameter.placements)
    if not zero3:
        parameter.data.copy_(values)
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
        parameter.data.copy_(values)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
