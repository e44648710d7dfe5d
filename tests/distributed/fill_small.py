"""Fills a tiny model's reference log-probs on every process, and leaves what came out; started by torchrun.

torchrun --nproc_per_node 2 tests/distributed/fill_small.py MODEL FOLDER '{"train": {...}}' [BATCHES_UNTIL_KILLED]
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import torch

from lora_dpo.training import reference
from lora_dpo.training.agreement import leave_together
from tests.small import small_recipe, small_trainer


def main(model: str, folder: Path, sections: dict, killed_after: int) -> None:
    torch.set_num_threads(1)
    reference._FLUSH_SECONDS = 0.0  # after every batch
    recipe = small_recipe(model, folder, **sections)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    trainer = small_trainer(recipe, count=22, per_question=4, validation=5, world_size=world, reference=False)
    batches = 0

    def after_batch() -> None:
        nonlocal batches
        batches += 1
        if batches == killed_after:
            os.kill(os.getpid(), signal.SIGKILL)

    cache = reference.fill_reference(trainer, recipe, after_batch=after_batch)
    result = {
        "strategy": str(trainer.accelerator.distributed_type),
        "world": trainer.accelerator.num_processes,
        "found": cache.found,
        "computed": cache.computed,
        "folder": cache.folder.name,
        "batches": batches,
        "columns": [
            rows[f"ref_{side}_logps"][:]
            for rows in (trainer.train_dataset, trainer.eval_dataset)
            for side in ("chosen", "rejected")
        ],
    }
    (folder / f"{trainer.accelerator.process_index}.json").write_text(json.dumps(result))
    trainer.accelerator.wait_for_everyone()
    leave_together()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3]), int(sys.argv[4]) if len(sys.argv) > 4 else 0)
