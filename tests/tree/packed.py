"""Attention over packed sequences, one after the other: a kernel for machines without a GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from lora_dpo.tree import varlen
from lora_dpo.tree.kernels import Scores
from lora_dpo.tree.varlen import Sequences


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: Tensor | None = None,
) -> Tensor:
    """What FlashAttention 2.6 to 2.8 promise under this name, sequence by sequence, in fp32 whatever the dtype."""
    assert causal and window_size[1] == 0 and dropout_p == 0.0
    assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
    query_ends, key_ends = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
    assert (query_ends[-1], key_ends[-1]) == (len(q), len(k))
    groups, outputs = q.shape[1] // k.shape[1], []
    for i in range(len(query_ends) - 1):
        queries = q[query_ends[i] : query_ends[i + 1]].transpose(0, 1).float()
        own = slice(key_ends[i], key_ends[i + 1])
        keys, values = (part[own].transpose(0, 1).float().repeat_interleave(groups, 0) for part in (k, v))
        (n, m) = queries.shape[1], keys.shape[1]
        assert n <= max_seqlen_q and m <= max_seqlen_k
        logits = softmax_scale * queries @ keys.transpose(1, 2)
        if softcap > 0:
            logits = softcap * (logits / softcap).tanh()
        behind = torch.arange(n)[:, None] + m - n - torch.arange(m)  # 0 is the last key that a query sees
        hidden = (behind < 0) | ((behind > window_size[0]) if window_size[0] >= 0 else False)
        outputs.append((logits.masked_fill(hidden, float("-inf")).softmax(-1) @ values).transpose(0, 1))
    return torch.cat(outputs).to(q.dtype)


def reference(query: Tensor, key: Tensor, value: Tensor, found: Sequences, scores: Scores) -> Tensor:
    """A kernel that runs on the CPU."""
    return varlen._flash(flash_attn_varlen_func, query, key, value, found, scores)
