"""What a run was made of: versions, hashes, seed, strategy."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import sys
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState
from transformers import PreTrainedModel

import lora_dpo
from lora_dpo.code_version import commit
from lora_dpo.model.four_bit import NF4
from lora_dpo.model.lineage import identify, identify_parent
from lora_dpo.recipe.batch import BatchPlan
from lora_dpo.recipe.run_folder import RunFolder
from lora_dpo.recipe.schema import Recipe
from lora_dpo.recipe.sessions import source_hashes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "deepspeed", "bitsandbytes")


def versions() -> dict[str, Any]:
    """Returns what runs: this package, with its commit in a checkout, Python, and the libraries."""
    return {
        "code": {"version": lora_dpo.__version__, "commit": commit()},
        "python": platform.python_version(),
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
    }


def provenance(
    recipe: Recipe,
    plan: BatchPlan,
    data: dict[str, Any],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> dict[str, Any]:
    """Returns what is needed to know, years later, how a run came about.

    Args:
        recipe: The recipe.
        plan: Batch and world size.
        data: Counts and hashes of the splits.
        model: The base model, which knows where it was loaded from.
        tokenizer: Its tokenizer.
    """
    dtype, start = str(model.dtype).removeprefix("torch."), recipe.adapter.init_from
    return {
        "schema_version": 1,
        "stage": recipe.run.stage,
        **versions(),
        "model": identify(recipe.model, tokenizer, getattr(model.config, "_commit_hash", None)),
        "parents": [identify_parent(start)] if start is not None else [],
        "quantization": {"bits": 4, **NF4, "dtype": dtype} if recipe.adapter.method == "qlora" else None,
        "sources": source_hashes(recipe.data),
        "data": {split: counts["hash"] for split, counts in data["splits"].items()},
        "seed": recipe.run.seed,
        "world_size": plan.world_size,
        "strategy": recipe.train.strategy,
        "distributed_type": PartialState().distributed_type.value,
        "dtype": dtype,
        "attention": model.config._attn_implementation,
        "batch": {"global": plan.global_batch, "micro": plan.micro_batch, "accumulation": plan.accumulation},
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "cpu",
        "arguments": sys.argv[1:],
    }


def trained_record(run: RunFolder, recipe: Recipe) -> dict[str, Any]:
    """Returns what an adapter or a model says of itself wherever it is copied to: what its run says, and the recipe.

    Args:
        run: The run, whose provenance.json is written.
        recipe: Its recipe.
    """
    return {**json.loads(run.provenance.read_text(encoding="utf-8")), "recipe": recipe.model_dump(mode="json")}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
