"""Summed log-probabilities of completions, over trees where the model takes them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lora_dpo.evaluation.policies import Policies
from lora_dpo.evaluation.work import Work
from lora_dpo.tree.collate import scored_tree
from lora_dpo.tree.hf import takes_trees
from lora_dpo.tree.precision import widened
from lora_dpo.tree.sequences import TREE_TOKENS, Completion, padded, padded_batches, tree_batches

_LOGIT_BYTES = 2**29
"""Bound on the float32 logits held at once."""
_QUESTIONS = 32
"""Questions at once, over trees: enough to fill one; where memory runs out there are fewer."""

Scored = tuple[list[int], list[int]]
"""Prompt and completion, as token ids."""
_Key = tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Scores:
    """Log-probabilities of sequences before and after, in nats."""

    before: dict[_Key, float]
    after: dict[_Key, float]

    def of(self, sequences: Sequence[Scored]) -> tuple[list[float], list[float]]:
        """Returns the log-probabilities of these sequences, before and after."""
        keys = [_key(sequence) for sequence in sequences]
        return [self.before[key] for key in keys], [self.after[key] for key in keys]


def score_both(work: Work, policies: Policies, questions: Sequence[Sequence[Scored]], *, batch_size: int) -> Scores:
    """Scores sequences before and after; one that stands in a question twice, or in two, is scored once.

    Args:
        work: How the forward passes are carried out.
        policies: The two policies.
        questions: Of each question, prompt and completion of its sequences, as token ids.
        batch_size: Without trees, sequences a forward pass at most.
    """
    seen: set[_Key] = set()
    distinct = []
    for question in questions:
        own = {_key(sequence): sequence for sequence in question if _key(sequence) not in seen}
        seen |= own.keys()
        if own:
            distinct.append(own)
    found: list[dict[_Key, float]] = []
    for policy, what in ((policies.before, "scoring answers, before"), (policies.after, "scoring answers, after")):
        with policy() as model:
            scores = score_questions(work, model, [list(own.values()) for own in distinct], what, batch_size=batch_size)
        parts = zip(distinct, scores, strict=True)
        found.append({key: value for own, part in parts for key, value in zip(own, part, strict=True)})
    return Scores(*found)


def _key(sequence: Scored) -> _Key:
    prompt, completion = sequence
    return tuple(prompt), tuple(completion)


def score_questions(
    work: Work, model: torch.nn.Module, questions: Sequence[Sequence[Scored]], what: str, *, batch_size: int
) -> list[list[float]]:
    """Returns log p(completion | prompt) of every sequence of every question, in nats.

    A model that takes trees reads each question once, with all its answers.

    Args:
        work: How the forward passes are carried out.
        model: A causal language model.
        questions: Of each question, prompt and completion of its sequences, as token ids.
        what: What the scores are, in a few words.
        batch_size: Without trees, sequences a forward pass at most.
    """

    def compute(batch: list[Sequence[Scored]]) -> list[list[float]]:
        scores = score(model, [sequence for question in batch for sequence in question], batch_size)
        return [part.tolist() for part in scores.split([len(question) for question in batch])]

    names = [hashlib.sha256(json.dumps(question).encode()).hexdigest()[:32] for question in questions]
    at_once = _QUESTIONS if takes_trees(model) else batch_size
    return work.map(what, questions, names, compute, batch_size=at_once, size=_tokens)


def _tokens(question: Sequence[Scored]) -> int:
    return sum(len(prompt) + len(completion) for prompt, completion in question)


def score(model: torch.nn.Module, sequences: Sequence[Scored], batch_size: int) -> torch.Tensor:
    """Returns log p(completion | prompt), summed over the completion's tokens.

    A model that takes trees reads what sequences share once; any other reads padded batches of similar length.

    Args:
        model: A causal language model.
        sequences: Prompt and completion of each sequence, as token ids.
        batch_size: Without trees, sequences a forward pass at most; fewer where the logits would get large.

    Returns:
        Log-probabilities, shape `(len(sequences),)`, float64 on the CPU, in the given order.
    """
    completions = [Completion.of(*sequence) for sequence in sequences]
    if takes_trees(model):
        batches, score_batch = tree_batches(completions, TREE_TOKENS), _score_tree
    else:
        positions = _LOGIT_BYTES // (4 * model.config.get_text_config().vocab_size)
        batches, score_batch = padded_batches(completions, batch_size, positions), _score_batch
    scores = torch.zeros(len(completions), dtype=torch.float64)
    for batch in batches:
        scores[batch] = score_batch(model, [completions[index] for index in batch]).double().cpu()
    return scores


def _score_tree(model: torch.nn.Module, sequences: list[Completion]) -> torch.Tensor:
    return model(tree=scored_tree(**padded(sequences)).to(model.device), fused_lm_head=True).log_probs.sum(1)


def _score_batch(model: torch.nn.Module, sequences: list[Completion]) -> torch.Tensor:
    ids, _, scored = (part.to(model.device) for part in padded(sequences).values())
    # The padding comes last, where no token sees it. A mask would leave windows of padding alone, all hidden: NaN.
    logits = model(input_ids=ids, use_cache=False).logits
    # Token t is predicted at t - 1; only the completions' positions go through the softmax.
    rows, columns = scored[:, 1:].nonzero(as_tuple=True)
    log_probs = widened(logits[rows, columns]).log_softmax(-1)
    token_log_probs = log_probs.gather(-1, ids[rows, columns + 1][:, None]).squeeze(-1)
    return token_log_probs.new_zeros(len(sequences)).index_add_(0, rows, token_log_probs)
