"""Which kernel attends: decided for each call from what the device and the tree are.

Only the blocks' has run so far, on the CPU: what is chosen on a GPU, and its limits here, come from documentation.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from enum import StrEnum
from typing import NamedTuple

import torch
from torch import Tensor

from lora_dpo.tree.attention import block_attention
from lora_dpo.tree.flex import flex_attention
from lora_dpo.tree.tree import Tree
from lora_dpo.tree.varlen import flash_kernel, keys_per_node, torch_kernel, varlen_attention

MOST_KEYS_PER_NODE = 4
"""Beyond it keys are not gathered. At 4, the gathered keys and values of Llama-3 8B (8 key heads of 128, bf16) take
16 KiB a node and layer, 7 % of the 232 KiB that its backward pass keeps of a layer anyway; without grouped heads they
would take 28 %. A prompt of 200 tokens with ten answers of 50 is still within (2700 keys of 700 nodes)."""

_LARGE_HEADS = {(8, 0), (9, 0), (10, 0)}
"""Compute capabilities whose shared memory holds PyTorch's backward pass for heads of more than 192."""


class Kernel(StrEnum):
    """The ways to attend."""

    BLOCKS = "blocks"
    FLEX = "flex"
    FLASH = "flash-attn"
    VARLEN = "torch-varlen"


class Call(NamedTuple):
    """What a kernel is chosen by.

    Attributes:
        device: Type of the device.
        capability: Its CUDA compute capability, (0, 0) elsewhere.
        dtype: Of queries and keys.
        head_dim: Size of a head.
        softcap: Whether logits are bounded.
        keys_per_node: How often a key would be repeated if chains were given their own.
        installed: Kernels that this environment has.
    """

    device: str
    capability: tuple[int, int]
    dtype: torch.dtype
    head_dim: int
    softcap: bool
    keys_per_node: float
    installed: frozenset[Kernel]


def choose(call: Call) -> Kernel:
    """Returns the kernel for a call: packed chains where they fit, else FlexAttention, and blocks off CUDA."""
    if call.device != "cuda":
        return Kernel.BLOCKS
    packs = (
        call.dtype in (torch.float16, torch.bfloat16)
        and call.capability >= (8, 0)
        and call.head_dim % 8 == 0
        and call.head_dim <= 256
        and call.keys_per_node <= MOST_KEYS_PER_NODE
    )
    if packs and Kernel.FLASH in call.installed:
        return Kernel.FLASH
    large = call.head_dim > 192 and call.capability not in _LARGE_HEADS
    if packs and Kernel.VARLEN in call.installed and not call.softcap and not large:
        return Kernel.VARLEN
    # Triton multiplies tiles of 16 at least.
    return Kernel.FLEX if Kernel.FLEX in call.installed and call.head_dim >= 16 else Kernel.BLOCKS


def tree_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    tree: Tree,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    kernel: Kernel | None = None,
) -> Tensor:
    """Attends with the kernel that suits the device: every query sees its ancestors and itself.

    Args:
        query: Shape (1, heads, N, head_dim).
        key: Shape (1, key_heads, N, head_dim); `heads` is a multiple of `key_heads`.
        value: Shape (1, key_heads, N, head_dim).
        tree: The forest of the row.
        scale: Factor of the logits.
        window: Positions that a query sees, its own included; None is all.
        softcap: Bound of the logits, None for none.
        kernel: The kernel, for comparisons; None chooses.

    Returns:
        Shape (1, N, heads, head_dim), in autocast's dtype where it is on.
    """
    device = query.device.type
    if torch.is_autocast_enabled(device):
        query, key, value = (part.to(torch.get_autocast_dtype(device)) for part in (query, key, value))
    if kernel is None:
        kernel = choose(_call(query, tree, window, softcap))
    return _attention(kernel)(query, key, value, tree, scale=scale, window=window, softcap=softcap)


def _call(query: Tensor, tree: Tree, window: int | None, softcap: float | None) -> Call:
    return Call(
        query.device.type,
        torch.cuda.get_device_capability(query.device) if query.is_cuda else (0, 0),
        query.dtype,
        query.shape[-1],
        softcap is not None,
        keys_per_node(tree, window),
        _installed(),
    )


@functools.cache
def _installed() -> frozenset[Kernel]:
    found = {
        Kernel.BLOCKS: True,
        Kernel.FLEX: importlib.util.find_spec("triton") is not None,
        Kernel.FLASH: flash_kernel() is not None,
        Kernel.VARLEN: torch_kernel() is not None and torch.version.cuda is not None,  # ROCm has another one
    }
    return frozenset(kernel for kernel, there in found.items() if there)


def _attention(kernel: Kernel) -> Callable[..., Tensor]:
    if kernel is Kernel.BLOCKS:
        return block_attention
    if kernel is Kernel.FLEX:
        return flex_attention
    packed = flash_kernel() if kernel is Kernel.FLASH else torch_kernel()
    if packed is None:
        raise ImportError(f"{kernel} is not installed, or is too old to take a window")
    return functools.partial(varlen_attention, kernel=packed)
