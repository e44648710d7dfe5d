"""What a run was made of: versions, hashes, seed, strategy."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import PreTrainedModel
from transformers.utils import cached_file

import lora_dpo
from lora_dpo.console import tracked
from lora_dpo.recipe.batch import BatchPlan
from lora_dpo.recipe.schema import Recipe

_PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "deepspeed", "bitsandbytes")
_WEIGHTS = ("*.safetensors", "*.bin")


def provenance(recipe: Recipe, plan: BatchPlan, data: dict[str, Any], model: PreTrainedModel) -> dict[str, Any]:
    """Returns what is needed to know, years later, how a run came about.

    Args:
        recipe: The recipe.
        plan: Batch and world size.
        data: Counts and hashes of the splits.
        model: The base model, which knows where it was loaded from.
    """
    return {
        "schema_version": 1,
        "code": {"version": lora_dpo.__version__, "commit": _commit()},
        "python": platform.python_version(),
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
        "model": {
            "name": recipe.model.name,
            "revision": getattr(model.config, "_commit_hash", None) or recipe.model.revision,
            "weights_sha256": weights_hash(model.config._name_or_path, recipe.model.revision),
        },
        "data": {split: counts["hash"] for split, counts in data["splits"].items()},
        "seed": recipe.run.seed,
        "world_size": plan.world_size,
        "strategy": recipe.train.strategy,
        "distributed_type": PartialState().distributed_type.value,
        "dtype": str(model.dtype).removeprefix("torch."),
        "attention": model.config._attn_implementation,
        "batch": {"global": plan.global_batch, "micro": plan.micro_batch, "accumulation": plan.accumulation},
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "cpu",
        "arguments": sys.argv[1:],
    }


def weights_hash(path: str, revision: str | None) -> str | None:
    """Returns one SHA-256 over the names and hashes of a model's weight files.

    Files in the Hub's cache are named by their hash already, so they are not read again.

    Args:
        path: Local folder or Hub id.
        revision: Hub revision.

    Returns:
        The hash, or None where no weight file is found.
    """
    folder = Path(path)
    if not folder.is_dir():
        config = cached_file(path, "config.json", revision=revision or "main", local_files_only=True)
        folder = Path(config).parent
    files = sorted(file for pattern in _WEIGHTS for file in folder.glob(pattern))
    if not files:
        return None
    whole = hashlib.sha256()
    for file in tracked(files, "hashing the base model"):
        whole.update(f"{file.name} {_file_hash(file)}\n".encode())
    return whole.hexdigest()


def _file_hash(file: Path) -> str:
    blob = file.resolve().name
    if file.is_symlink() and len(blob) == 64:
        return blob
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Returns the checkout's commit, with `+` where files differ from it; None outside a checkout."""
    folder = Path(lora_dpo.__file__).resolve().parent.parent
    if not (folder / ".git").exists():
        return None
    git = ["git", "-C", os.fspath(folder)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{commit}+" if changed else commit
