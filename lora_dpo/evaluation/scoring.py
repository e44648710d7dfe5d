"""Summed log-probabilities of completions, over trees where the model takes them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.utils.rnn import pad_sequence

from lora_dpo.console import tracked
from lora_dpo.tree.collate import scored_tree
from lora_dpo.tree.hf import takes_trees

_TREE_TOKENS = 4096
"""Bound on the distinct tokens of a forward pass."""
_LOGIT_BYTES = 2**29
"""Bound on the float32 logits held at once."""


def score(
    model: torch.nn.Module, sequences: Sequence[tuple[list[int], list[int]]], batch_size: int, label: str
) -> torch.Tensor:
    """Returns log p(completion | prompt), summed over the completion's tokens.

    A model that takes trees reads what sequences share once; any other reads padded batches of similar length.

    Args:
        model: A causal language model.
        sequences: Prompt and completion of each sequence, as token ids.
        batch_size: Without trees, sequences a forward pass at most; fewer where the logits would get large.
        label: What the progress bar says.

    Returns:
        Log-probabilities, shape `(len(sequences),)`, float64 on the CPU, in the given order.
    """
    if takes_trees(model):
        batches, score_batch = _batches_with_one_prompt_together(sequences), _score_tree
    else:
        order = sorted(range(len(sequences)), key=lambda index: -sum(map(len, sequences[index])))
        batches = _batches(order, sequences, batch_size, model.config.get_text_config().vocab_size)
        score_batch = _score_batch
    scores = torch.zeros(len(sequences), dtype=torch.float64)
    for batch in tracked(batches, label):
        scores[batch] = score_batch(model, [sequences[index] for index in batch]).double().cpu()
    return scores


def _batches_with_one_prompt_together(sequences: Sequence[tuple[list[int], list[int]]]) -> list[list[int]]:
    """Cuts the sequences, sorted by prompt, where a batch's tree would get larger than `_TREE_TOKENS`."""
    batches: list[list[int]] = []
    tokens, before = 0, None
    for index in sorted(range(len(sequences)), key=lambda index: sequences[index]):
        prompt, completion = sequences[index]
        added = len(completion) + (0 if prompt == before else len(prompt))
        if not batches or tokens + added > _TREE_TOKENS:
            batches.append([])
            tokens, added = 0, len(prompt) + len(completion)
        batches[-1].append(index)
        tokens, before = tokens + added, prompt
    return batches


def _score_tree(model: torch.nn.Module, batch: list[tuple[list[int], list[int]]]) -> torch.Tensor:
    ids, real, scored = _padded(batch)
    return model(tree=scored_tree(ids, real, scored).to(model.device), fused_lm_head=True).log_probs.sum(1)


def _padded(batch: list[tuple[list[int], list[int]]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns tokens, where they are real, and where they are scored; each (sequences, T)."""
    ids = pad_sequence([torch.tensor(prompt + completion) for prompt, completion in batch], batch_first=True)
    lengths = torch.tensor([len(prompt) + len(completion) for prompt, completion in batch])
    starts = torch.tensor([len(prompt) for prompt, _ in batch])
    positions = torch.arange(ids.size(1))
    real = positions < lengths[:, None]
    return ids, real, real & (positions >= starts[:, None])


def _batches(
    order: list[int], sequences: Sequence[tuple[list[int], list[int]]], batch_size: int, vocabulary: int
) -> list[list[int]]:
    batches: list[list[int]] = []
    start = 0
    while start < len(order):  # longest first, so the first of a batch is its width
        width = sum(map(len, sequences[order[start]]))
        size = max(1, min(batch_size, _LOGIT_BYTES // (4 * width * vocabulary)))
        batches.append(order[start : start + size])
        start += size
    return batches


def _score_batch(model: torch.nn.Module, batch: list[tuple[list[int], list[int]]]) -> torch.Tensor:
    device = model.device
    ids, real, scored = _padded(batch)
    logits = model(input_ids=ids.to(device), attention_mask=real.long().to(device), use_cache=False).logits
    # Token t is predicted at t - 1; only the completions' positions go through the float32 softmax.
    rows, columns = scored[:, 1:].nonzero(as_tuple=True)
    log_probs = logits[rows, columns].float().log_softmax(-1)
    token_log_probs = log_probs.gather(-1, ids[rows, columns + 1].to(device)[:, None]).squeeze(-1)
    return torch.zeros(len(batch), device=device).index_add_(0, rows.to(device), token_log_probs)
