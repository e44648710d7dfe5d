"""Trained weights from a checkpoint into a live model, however that is divided."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import PeftModel, load_peft_weights
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from lora_dpo.training.saving import names_in_file, trained_tensors


def load_trained(model: PeftModel, folder: Path) -> None:
    """Puts a checkpoint's adapter into the model. Every rank must call it.

    Args:
        model: The unwrapped model, whole or divided by ZeRO-3 or FSDP2.
        folder: The checkpoint.
    """
    tensors, values = trained_tensors(model), load_peft_weights(str(folder), device="cpu")
    for name, key in names_in_file(model, tensors).items():
        _fill(tensors[name], values[key])


@torch.no_grad()
def _fill(tensor: Tensor, value: Tensor) -> None:
    if hasattr(tensor, "ds_id"):
        from deepspeed import zero

        with zero.GatheredParameters([tensor], modifier_rank=0):
            tensor.copy_(value)
    elif isinstance(tensor, DTensor):
        tensor.copy_(distribute_tensor(value.to(tensor.device), tensor.device_mesh, tensor.placements))
    else:
        tensor.copy_(value)
