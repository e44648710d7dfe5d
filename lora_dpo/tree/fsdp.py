"""FSDP2 as Accelerate sets it up, made to keep scores in float32 and to compute the reference before the training."""

from __future__ import annotations

import dataclasses

import torch
from accelerate import Accelerator
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy


def keep_scores_in_float32(accelerator: Accelerator) -> None:
    """Lets log-probs leave the model, and gradients be summed, as they are: Accelerate would round both to bfloat16.

    Args:
        accelerator: Before it has prepared a model.
    """
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    policy = plugin.mixed_precision_policy if plugin is not None else None
    if isinstance(policy, MixedPrecisionPolicy):
        plugin.mixed_precision_policy = dataclasses.replace(
            policy, output_dtype=torch.float32, reduce_dtype=torch.float32
        )


def divide(accelerator: Accelerator, model: torch.nn.Module) -> torch.nn.Module:
    """Divides a model over the ranks now; `accelerator.prepare` finds it done when the training begins.

    Until then Trainer leaves the model whole and on the CPU.
    """
    return fsdp2_prepare_model(accelerator, model)


def settle_dtypes(model: torch.nn.Module) -> None:
    """Makes FSDP look again at which tensors are trained, after a first forward pass with the adapter switched off.

    It looks once, at the first forward pass; with nothing to train it would not cast gradients to the adapter's dtype.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.unshard()
            module.reshard()
