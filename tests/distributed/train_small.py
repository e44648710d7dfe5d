"""Trains a tiny model for a few steps on every process, and leaves what came out; started by torchrun.

torchrun --nproc_per_node 2 tests/distributed/train_small.py MODEL FOLDER '{"train": {...}}'
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch

from lora_dpo.recipe.schema import Recipe
from tests.small import small_recipe, small_trainer


def main(model: str, folder: Path, sections: dict) -> None:
    torch.set_num_threads(1)
    recipe: Recipe = small_recipe(model, folder, **sections)
    # Of several pairs a question, so that micro-batches of about equally many tokens have different numbers of pairs.
    size = {"count": 11, "validation": 5, "per_question": 4}
    trainer = small_trainer(recipe, **size, world_size=int(os.environ.get("WORLD_SIZE", "1")))
    # A fresh B is zero, and so is every gradient of A; with another one the first loss is not ln 2.
    trainer._first_loss_pending = False
    torch.manual_seed(0)
    zero3 = trainer.is_deepspeed_enabled and any(hasattr(value, "ds_id") for value in trainer.model.parameters())
    for name, value in trainer.model.named_parameters():
        if "lora_B" in name:
            fresh = torch.randn(value.ds_shape if zero3 else value.shape) * 0.05
            fill(value, fresh, zero3)
    if recipe.dpo.reference == "cached":
        trainer.compute_reference()
    trainer.train()
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if trainer.is_world_process_zero():
        whole = recipe.adapter.method == "full"
        trained = {name: value.cpu() for name, value in state.items() if whole or "lora_" in name}
        torch.save(trained, folder / "adapter.pt")
        log = {
            "log": trainer.state.log_history,
            "world": trainer.accelerator.num_processes,
            "strategy": str(trainer.accelerator.distributed_type),
            "reference": trainer.train_dataset["ref_chosen_logps"][:] if recipe.dpo.reference == "cached" else [],
        }
        (folder / "log.json").write_text(json.dumps(log))
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()  # a process that ends while gloo's threads run may be aborted by them


def fill(parameter: torch.nn.Parameter, values: torch.Tensor, zero3: bool) -> None:
    if not zero3:
        parameter.data.copy_(values)
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
        parameter.data.copy_(values)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3]))
