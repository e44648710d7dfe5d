"""Gradients of a small adapter summed over the processes in one piece and one fixed order.

DistributedDataParallel sums them in buckets whose order it learns in its first step. After a restart it learns again,
and with more than two processes a ring then adds the same numbers in another order: the last bits differ, and with them
the run.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, distributed
from torch.distributed.algorithms.ddp_comm_hooks.debugging_hooks import noop_hook
from torch.nn.parallel import DistributedDataParallel


def leave_gradients_alone(model: DistributedDataParallel) -> None:
    """Stops a wrapped model from summing gradients by itself; `mean_gradients` is then called instead."""
    model.register_comm_hook(None, noop_hook)


def mean_gradients(parameters: Iterable[Tensor]) -> None:
    """Replaces each parameter's gradient by its mean over the processes, by one all-reduce for each dtype.

    Args:
        parameters: The trained parameters, in the same order on every process; those without a gradient count as zero.
    """
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for parameter in parameters:
        by_dtype.setdefault(parameter.dtype, []).append(parameter)
    for of_one_dtype in by_dtype.values():
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in of_one_dtype]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        distributed.all_reduce(flat)
        flat /= distributed.get_world_size()
        for parameter, part in zip(of_one_dtype, flat.split([g.numel() for g in gradients]), strict=True):
            parameter.grad = part.view_as(parameter)
