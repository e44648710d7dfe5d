"""Prints what the check says to a DeepSpeed file; DeepSpeed stays in the process that it starts in."""

from __future__ import annotations

import sys
from pathlib import Path

from lora_dpo.errors import UserError
from lora_dpo.recipe.batch import BatchPlan
from lora_dpo.training.arguments import training_arguments
from lora_dpo.training.world import check_world
from tests.small import small_recipe

if __name__ == "__main__":
    config, folder = sys.argv[1], Path(sys.argv[2])
    recipe = small_recipe("a/model", folder, train={"strategy": "zero2", "trl": {"deepspeed": config}})
    plan = BatchPlan(global_batch=4, micro_batch=2, accumulation=2, world_size=1)
    try:
        check_world(recipe, plan, training_arguments(recipe, plan, 8, 0, folder / "checkpoints"))
    except UserError as error:
        print(error)
