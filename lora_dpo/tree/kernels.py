"""Attention of one block, forward and backward, in two forms that agree: PyTorch's fused CPU kernel, and plain algebra.

Both work on packed heads: the query heads that share a key head are rows of one matrix, so keys are never repeated.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lora_dpo.tree.precision import widened

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class Scores(NamedTuple):
    """How logits are made: `softcap * tanh(scale * q k / softcap)`, or `scale * q k` without a softcap."""

    scale: float
    softcap: float | None


def attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scores: Scores, *, causal: bool
) -> tuple[Tensor, Tensor]:
    """Returns the output, and the log of each row's normaliser.

    Args:
        query: Rows of queries, shape (heads, rows, head_dim).
        key: Shape (heads, keys, head_dim).
        value: Shape (heads, keys, head_dim).
        mask: Added to the logits, 0 or -inf, shape (rows, keys); None hides nothing.
        scores: Scale and softcap.
        causal: Row i sees keys 0..i, in place of a mask.

    Returns:
        Output, shape (heads, rows, head_dim), and log-sum-exp, shape (heads, rows), fp32 or fp64.
    """
    if _fused(query, scores):
        output, normaliser = _flash(
            query[None], key[None], value[None], is_causal=causal, attn_mask=mask, scale=scores.scale
        )
        return output[0], normaliser[0]
    logits, _ = _logits(query, key, mask, scores, causal)
    normaliser = logits.logsumexp(-1)
    weights = (logits - normaliser[..., None]).exp_()
    return torch.matmul(weights.to(value.dtype), value), normaliser


def attend_backward(
    query: Tensor,
    output: Tensor,
    gradient: Tensor,
    normaliser: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scores: Scores,
    *,
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the gradients of query, key and value.

    With weights p, output o and its gradient g, the logits' gradient is p * (g v^T - rowsum(g * o)) (Dao et al. 2022,
    FlashAttention, algorithm 4), times 1 - tanh^2 under a softcap. With output and normaliser over more keys than
    these, it is these keys' part of the whole.
    """
    if _fused(query, scores):
        gradients = _flash_backward(
            gradient[None], query[None], key[None], value[None], output[None], normaliser[None], 0.0, causal,
            attn_mask=mask, scale=scores.scale,
        )  # fmt: skip
        return tuple(part[0] for part in gradients)
    logits, tanh = _logits(query, key, mask, scores, causal)
    weights = (logits - normaliser[..., None]).exp_()
    inner = (widened(gradient) * widened(output)).sum(-1, keepdim=True)
    of_value = torch.matmul(weights.to(value.dtype).transpose(-1, -2), gradient)
    of_logits = weights.mul_(widened(torch.matmul(gradient, value.transpose(-1, -2))).sub_(inner))
    if tanh is not None:
        of_logits.mul_(1 - tanh.square_())
    of_logits = of_logits.mul_(scores.scale).to(query.dtype)
    return torch.matmul(of_logits, key), torch.matmul(of_logits.transpose(-1, -2), query), of_value


def _fused(query: Tensor, scores: Scores) -> bool:
    # In float64 the kernel takes a float32 mask without a word, and reads it as something else.
    return query.device.type == "cpu" and scores.softcap is None and query.dtype != torch.float64


def _logits(
    query: Tensor, key: Tensor, mask: Tensor | None, scores: Scores, causal: bool
) -> tuple[Tensor, Tensor | None]:
    logits, tanh = widened(torch.matmul(query, key.transpose(-1, -2))).mul_(scores.scale), None
    if scores.softcap is not None:
        tanh = logits.div_(scores.softcap).tanh_()
        logits = tanh * scores.softcap
    if causal:
        mask = torch.full(logits.shape[-2:], float("-inf"), device=logits.device).triu_(1)
    return (logits if mask is None else logits.add_(mask)), tanh
