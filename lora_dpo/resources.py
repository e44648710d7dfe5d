"""Finds the folders beside the package: recipes, Accelerate and DeepSpeed configurations, Slurm scripts."""

from __future__ import annotations

from pathlib import Path

FOLDERS = ("recipes", "accelerate_configs", "ds_configs", "slurm")

_PACKAGE = Path(__file__).resolve().parent


def folder(name: str) -> Path:
    """Returns one of the top-level folders, from a checkout, an editable install or a wheel.

    A wheel carries the folders inside the package (`lora_dpo/_resources/`), a checkout beside it.

    Args:
        name: One of `FOLDERS`.

    Raises:
        FileNotFoundError: The installation is incomplete.
    """
    candidates = (_PACKAGE / "_resources" / name, _PACKAGE.parent / name)
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
    raise FileNotFoundError(f"lora-dpo's folder '{name}' is neither at {candidates[0]} nor at {candidates[1]}")
