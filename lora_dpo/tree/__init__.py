"""Preference trees: the same losses and gradients with every distinct token computed once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lora_dpo.tree.hf import Batching, enable

__all__ = ["Batching", "enable"]


def __getattr__(name: str) -> Any:
    """Imports Transformers and TRL only when the seam with them is asked for."""
    if name in __all__:
        from lora_dpo.tree import hf

        return getattr(hf, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
