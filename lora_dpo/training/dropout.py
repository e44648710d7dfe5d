"""Dropout exactly where the recipe asks for it: on the trained adapter's input, nowhere else."""

from __future__ import annotations

import torch
from peft.tuners.tuners_utils import BaseTunerLayer

_TRAINED = "default"


def set_adapter_dropout(model: torch.nn.Module, probability: float) -> None:
    """Sets the dropout of the trained adapter and silences every other one.

    TRL's `disable_dropout` silences the adapter's too, and not the numbers that attention layers hand to a fused
    kernel.

    Args:
        model: The model, with or without an adapter.
        probability: Dropout on the input of the adapter named `default`.
    """
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0  # attention layers that hand the number to a fused kernel
    for module in model.modules():
        dropouts = getattr(module, "lora_dropout", None)
        if isinstance(module, BaseTunerLayer) and dropouts is not None and _TRAINED in dropouts:
            dropouts[_TRAINED] = torch.nn.Dropout(probability) if probability > 0 else torch.nn.Identity()
