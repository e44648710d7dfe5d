"""LoRA as part of the matrix products: scaling and adding take no pass over memory of their own."""

from __future__ import annotations

import types
from typing import Any

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed.tensor import DTensor


def fuse_adapters(model: torch.nn.Module) -> int:
    """Gives the model's LoRA layers a forward of three products, W x + s B A x, and a backward of five.

    This is equation 3 of Hu et al. (2021, LoRA), as PEFT computes it; but PEFT scales and adds in passes of their own,
    each over a tensor as large as the layer's output. In any other state of a layer (merged, disabled, several
    adapters, dropout, DoRA, quantised, sharded, a trained base, mixed types) PEFT's own forward runs.

    Returns:
        How many layers have it.
    """
    layers = [layer for layer in model.modules() if type(layer) is LoraLinear]
    for layer in layers:
        layer.forward = types.MethodType(_forward, layer)
    return len(layers)


def _forward(layer: LoraLinear, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    parts = None if args or kwargs else _parts(layer, x)
    if parts is None:
        return LoraLinear.forward(layer, x, *args, **kwargs)
    weight, bias, a, b, scaling = parts
    rows = x.reshape(-1, x.shape[-1]).to(weight.dtype)
    return _FusedLora.apply(rows, weight, bias, a, b, scaling).view(*x.shape[:-1], len(weight))


def _parts(layer: LoraLinear, x: Tensor) -> tuple[Tensor, Tensor | None, Tensor, Tensor, float] | None:
    """Returns weight (out, in), bias, A (r, in), B (out, r) and scaling; None where PEFT must do it itself."""
    if layer.disable_adapters or layer.merged or len(layer.active_adapters) != 1:
        return None
    (name,) = layer.active_adapters
    if name not in layer.lora_A or name in layer.lora_variant or isinstance(layer.lora_dropout[name], torch.nn.Dropout):
        return None
    base, lora_a, lora_b = layer.base_layer, layer.lora_A[name], layer.lora_B[name]
    weight, a, b = base.weight, lora_a.weight, lora_b.weight
    autocast = torch.is_autocast_enabled(x.device.type)
    dtype = torch.get_autocast_dtype(x.device.type) if autocast else x.dtype
    if weight.dtype != dtype or not (autocast or a.dtype == b.dtype == dtype):
        return None
    if lora_b.bias is not None or any(map(_is_elsewhere, (weight, a, b))):
        return None
    if any(part.requires_grad for part in base.parameters(recurse=False)):
        return None
    if any(part._forward_hooks or part._forward_pre_hooks for part in (base, lora_a, lora_b)):
        return None
    return (weight.T if layer.fan_in_fan_out else weight), base.bias, a.to(dtype), b.to(dtype), layer.scaling[name]


def _is_elsewhere(weight: Tensor) -> bool:
    """Returns whether a weight is gathered only while its own module runs (ZeRO-3, FSDP, tensor parallelism)."""
    return hasattr(weight, "ds_id") or isinstance(weight, DTensor)


class _FusedLora(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float
    ) -> Tensor:
        low = rows @ a.T
        output = rows @ weight.T if bias is None else torch.addmm(bias.to(rows.dtype), rows, weight.T)
        ctx.save_for_backward(rows, low, weight, a, b)
        ctx.scaling = scaling
        return output.addmm_(low, b.T, alpha=scaling)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, low, weight, a, b = ctx.saved_tensors
        of_low = (gradient @ b).mul_(ctx.scaling)
        of_rows = (gradient @ weight).addmm_(of_low, a) if ctx.needs_input_grad[0] else None
        return of_rows, None, None, of_low.T @ rows, (gradient.T @ low).mul_(ctx.scaling), None
