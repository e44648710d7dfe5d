"""From a padded batch of sequences to its tree, with a way back to the batch's shape."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lora_dpo.tree.forest import Forest, Index, build_forest
from lora_dpo.tree.score import EdgeScores, Head, score_edges
from lora_dpo.tree.tree import Tree


@dataclass(frozen=True, slots=True)
class ScoredTree:
    """A micro-batch's tree, the edges to be scored, and where each one stands in the padded batch.

    Attributes:
        tree: The distinct prefixes.
        parents: Nodes that predict something, in order, shape (P,).
        edges: Row of `parents` for each scored edge, shape (E,).
        targets: Token of each edge's child, shape (E,).
        slots: 1 + the edge that scores token t + 1 of each sequence, 0 where nothing is, shape (sequences, T - 1).
        n_tokens: Tokens of the batch before prefixes were shared, padding left out.
    """

    tree: Tree
    parents: Tensor
    edges: Tensor
    targets: Tensor
    slots: Tensor
    n_tokens: int

    def to(self, device: torch.device | str, non_blocking: bool = False) -> ScoredTree:
        """Returns it on a device; Accelerate calls this as it does a tensor's."""
        return self._each(lambda part: part.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> ScoredTree:
        """Returns it in page-locked memory; the data loader calls this as it does a tensor's."""
        return self._each(lambda part: part.pin_memory())

    def score(self, hidden: Tensor, head: Head, *, with_squares: bool = False) -> EdgeScores:
        """Returns what `score_edges` does, in the padded batch's shape: (sequences, T - 1), 0 where nothing is scored.

        Args:
            hidden: Hidden states of the tree's nodes, shape (N, d).
            head: The output head.
            with_squares: Whether `log_sum_sq_probs` is wanted.
        """
        states = hidden.index_select(0, self.parents)
        scores = score_edges(states, self.edges, self.targets, head, with_squares=with_squares)
        return EdgeScores(
            *(None if part is None else torch.cat([part.new_zeros(1), part])[self.slots] for part in scores)
        )

    def _each(self, move: Callable[[Any], Any]) -> ScoredTree:
        return replace(
            self, **{name: move(getattr(self, name)) for name in ("tree", "parents", "edges", "targets", "slots")}
        )


def scored_tree(input_ids: Tensor, attention_mask: Tensor, completion_mask: Tensor) -> ScoredTree:
    """Builds the tree of a padded batch.

    Args:
        input_ids: Shape (sequences, T).
        attention_mask: 1 where there is a token, shape (sequences, T); each sequence's tokens lie in one piece.
        completion_mask: 1 where a token is scored, shape (sequences, T). A sequence's first token never is: nothing
            predicts it.
    """
    ids, present, scored = (part.numpy() for part in (input_ids, attention_mask.bool(), completion_mask.bool()))
    forest = build_forest([row[here] for row, here in zip(ids, present, strict=True)])
    nodes = np.full(ids.shape, -1, np.int64)
    nodes[present] = np.concatenate(forest.paths) if len(forest) else []
    children = np.where(scored & present, nodes, -1)[:, 1:]
    children[nodes[:, :-1] < 0] = -1  # left padding: the first token has no predecessor
    return _with_edges(forest, children, int(present.sum()))


def _with_edges(forest: Forest, children: Index, n_tokens: int) -> ScoredTree:
    scored, slots = np.unique(children, return_inverse=True)
    slots = slots.reshape(children.shape)
    if len(scored) and scored[0] < 0:  # -1 sorts first, so that slot 0 is free for "nothing"
        scored = scored[1:]
    else:
        slots = slots + 1
    parents, edges = np.unique(forest.parent[scored], return_inverse=True)
    tensors = (torch.from_numpy(part.astype(np.int64)) for part in (parents, edges, forest.ids[scored], slots))
    return ScoredTree(Tree.of(forest), *tensors, n_tokens)


class PlanCollator:
    """TRL's collator, with the pairs' weights and, where trees are on, the batch's tree.

    Attributes:
        plain: TRL's collator.
        trees: Whether trees are on.
    """

    def __init__(self, collator: Callable[[list[dict[str, Any]]], dict[str, Any]], *, trees: bool) -> None:
        self.plain = collator
        self.trees = trees

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Returns TRL's padded batch and what a planned micro-batch adds to it."""
        # First, and of one row: Trainer repeats and gathers an evaluation's loss by the rows of the first tensor, which
        # must be as many on every process.
        batch = {"pair_weights": torch.tensor([[example.get("weight", 1.0) for example in examples]])}
        batch |= self.plain(examples)
        if self.trees:
            batch["tree"] = scored_tree(batch["input_ids"], batch["attention_mask"], self.scored(batch))
        return batch

    def scored(self, batch: dict[str, Any]) -> Tensor:
        """Returns a batch's mask of tokens that are scored, as `scored_tree` takes it."""
        return batch["completion_mask"]
