"""Log-probabilities of edges: each parent's hidden state predicts its children, over tiles of the vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lora_dpo.tree.precision import wide_dtype, widened

_TILE_ELEMENTS = {"cpu": 2**20, "cuda": 2**26}
"""Logits held at once; large enough for the matrix product to run at full speed, small enough for the cache (CPU)."""
_ROWS = {"cpu": 512, "cuda": 4096}


@dataclass(frozen=True, slots=True)
class Head:
    """How hidden states become logits: `softcap * tanh(scale * (W h + b) / softcap)`.

    Attributes:
        weight: Output embedding, shape (V, d).
        bias: Shape (V,), or None.
        scale: Factor of the logits.
        softcap: Bound of the logits, None for none.
        gathered: Context in which weight and bias are whole, where they are divided over processes and trained: the
            backward pass enters it again.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None
    gathered: Callable[[], AbstractContextManager[Any]] = nullcontext


class EdgeScores(NamedTuple):
    """What the tiles give, for each edge; all but `log_probs` are for metrics and carry no gradient.

    Attributes:
        log_probs: Log-probability of the child's token, shape (E,), fp32.
        entropy: Entropy of the parent's prediction, in nats, shape (E,).
        mean_logits: Mean of the parent's logits over the vocabulary, shape (E,).
        is_top1: Whether the child's token is the most likely one, shape (E,).
        log_sum_sq_probs: log of the sum of squared probabilities, which WPO's weights need, shape (E,); None where it
            was not asked for.
    """

    log_probs: Tensor
    entropy: Tensor
    mean_logits: Tensor
    is_top1: Tensor
    log_sum_sq_probs: Tensor | None


def score_edges(
    hidden: Tensor, parents: Tensor, targets: Tensor, head: Head, *, with_squares: bool = False
) -> EdgeScores:
    r"""Scores edges, each parent's prediction computed once however many children it has.

    The gradient of an edge's log-probability depends on its parent's hidden state alone,
    d log p_y / d h = s'_y W_y - \sum_v p_v s'_v W_v with s' = scale * (1 - tanh^2), so for a frozen head it is formed
    in the same pass over the vocabulary, and the backward pass is one product: 4Vd in place of 6Vd operations a token.
    A head that is trained is computed again in the backward pass.

    Args:
        hidden: Hidden states of the parents, shape (P, d).
        parents: Row of `hidden` for each edge, shape (E,).
        targets: Token of each edge's child, shape (E,).
        head: The output head.
        with_squares: Whether `log_sum_sq_probs` is wanted, a pass more over each tile.
    """
    trained = head.weight.requires_grad or (head.bias is not None and head.bias.requires_grad)
    function = _TrainedHead if trained and torch.is_grad_enabled() else _FrozenHead
    return EdgeScores(*function.apply(hidden, head.weight, head.bias, parents, targets, head, with_squares))


class _FrozenHead(torch.autograd.Function):
    """Forms the gradient in the forward pass, where one is wanted."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, parents: Tensor, targets: Tensor,
        head: Head, with_squares: bool,
    ) -> tuple[Tensor | None, ...]:  # fmt: skip
        ctx.set_materialize_grads(False)
        wanted = {"with_gradient": ctx.needs_input_grad[0], "with_squares": with_squares}
        statistics = _Statistics(hidden, head, parents, targets, **wanted)
        ctx.shape, ctx.dtype = hidden.shape, hidden.dtype
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(statistics.edge_gradients().to(hidden.dtype), parents)
        return _differentiable_in_the_first(ctx, statistics.scores())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        if gradient is None:
            return (None,) * 7
        of_edge, parents = ctx.saved_tensors
        of_hidden = torch.zeros(ctx.shape, device=gradient.device, dtype=wide_dtype(of_edge))
        of_hidden.index_add_(0, parents, of_edge * gradient[:, None])
        return of_hidden.to(ctx.dtype), *(None,) * 6


class _TrainedHead(torch.autograd.Function):
    """Computes the tiles again in the backward pass, for the gradients of hidden states, weight and bias."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, parents: Tensor, targets: Tensor,
        head: Head, with_squares: bool,
    ) -> tuple[Tensor | None, ...]:  # fmt: skip
        ctx.set_materialize_grads(False)
        statistics = _Statistics(hidden, head, parents, targets, with_gradient=False, with_squares=with_squares)
        ctx.save_for_backward(hidden, weight, bias, parents, targets, statistics.log_normaliser)
        ctx.head = head
        return _differentiable_in_the_first(ctx, statistics.scores())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        if gradient is None:
            return (None,) * 7
        with ctx.head.gathered():
            return *_TrainedHead._gradients(widened(gradient), *ctx.saved_tensors, ctx.head), *(None,) * 4

    @staticmethod
    def _gradients(
        gradient: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None, parents: Tensor, targets: Tensor,
        log_normaliser: Tensor, head: Head,
    ) -> tuple[Tensor, Tensor, Tensor | None]:  # fmt: skip
        head = replace(head, weight=weight, bias=bias)
        wide = {"device": hidden.device, "dtype": wide_dtype(weight)}
        of_hidden, of_weight = torch.zeros(hidden.shape, **wide), torch.zeros(weight.shape, **wide)
        of_bias = None if bias is None else torch.zeros(bias.shape, **wide)
        total = torch.zeros(len(hidden), **wide).index_add_(0, parents, gradient)
        for rows, words, logits, slope in _tiles(hidden, head):
            of_logits = (logits - log_normaliser[rows, None]).exp_().mul_(-total[rows, None])
            inside, row, column = _in_tile(parents, targets, rows, logits, words.start)
            of_logits.index_put_((row, column), gradient.where(inside, 0), accumulate=True)
            of_logits.mul_(head.scale)
            if slope is not None:
                of_logits.mul_(slope)
            low = of_logits.to(weight.dtype)
            of_hidden[rows] += torch.matmul(low, weight[words])
            of_weight[words] += torch.matmul(low.T, hidden[rows].to(weight.dtype))
            if of_bias is not None:
                of_bias[words] += of_logits.sum(0)
        of_bias = None if of_bias is None else of_bias.to(bias.dtype)
        return of_hidden.to(hidden.dtype), of_weight.to(weight.dtype), of_bias


def _differentiable_in_the_first(ctx: Any, scores: EdgeScores) -> tuple[Tensor | None, ...]:
    ctx.mark_non_differentiable(*(part for part in scores[1:] if part is not None))
    return tuple(scores)


class _Statistics:
    """One pass over the vocabulary: running sums of each parent, rescaled whenever its maximum grows."""

    def __init__(
        self, hidden: Tensor, head: Head, parents: Tensor, targets: Tensor, *, with_gradient: bool, with_squares: bool
    ) -> None:
        self._hidden, self._head, self._parents, self._targets = hidden, head, parents, targets
        dtype = wide_dtype(head.weight)
        wide = {"device": hidden.device, "dtype": dtype}
        zeros = torch.zeros(len(hidden), **wide)
        self._maximum = torch.full_like(zeros, float("-inf"))
        self._exponentials, self._logits = zeros.clone(), zeros.clone()
        self._squares = zeros.clone() if with_squares else None
        self._expected = torch.zeros(hidden.shape, **wide) if with_gradient else None
        # Sum of p_v z_v. In fp32 and without a bend the expected row of W gives it, without another pass over the tile.
        exact = head.weight.dtype == dtype and head.bias is None and head.softcap is None
        self._weighted_logits = None if with_gradient and exact else zeros
        self._target = torch.zeros(len(targets), **wide)
        self._slope = torch.ones_like(self._target)
        for rows, words, logits, slope in _tiles(hidden, head):
            inside, row, column = _in_tile(parents, targets, rows, logits, words.start)
            self._target = logits[row, column].where(inside, self._target)
            if slope is not None:
                self._slope = slope[row, column].where(inside, self._slope)
            self._add(rows, words, logits, slope)
        self.log_normaliser = self._maximum + self._exponentials.log()

    def _add(self, rows: slice, words: slice, logits: Tensor, slope: Tensor | None) -> None:
        self._logits[rows] += logits.sum(1)
        maximum = torch.maximum(self._maximum[rows], logits.amax(1))
        shrink = (self._maximum[rows] - maximum).exp_()
        self._maximum[rows] = maximum
        weights = (logits - maximum[:, None]).exp_()
        self._exponentials[rows] = self._exponentials[rows] * shrink + weights.sum(1)
        if self._weighted_logits is not None:
            added = (weights * logits).sum(1)
            self._weighted_logits[rows] = self._weighted_logits[rows] * shrink + added
        if self._squares is not None:
            self._squares[rows] = self._squares[rows] * shrink.square() + weights.square().sum(1)
        if self._expected is not None:
            self._expected[rows] *= shrink[:, None]
            weight = self._head.weight[words]
            weights = (weights if slope is None else weights.mul_(slope)).to(weight.dtype)
            if weight.dtype == self._expected.dtype:
                self._expected[rows].addmm_(weights, weight)
            else:
                self._expected[rows] += torch.matmul(weights, weight)

    def edge_gradients(self) -> Tensor:
        expected = self._expected / self._exponentials[:, None]
        of_target = widened(self._head.weight[self._targets]).mul_(self._slope[:, None])
        return of_target.sub_(expected[self._parents]).mul_(self._head.scale)

    def scores(self) -> EdgeScores:
        weighted = self._weighted_logits
        if weighted is None:
            weighted = (self._expected * self._hidden).sum(1) * self._head.scale
        entropy = self.log_normaliser - weighted / self._exponentials
        squares = None if self._squares is None else self._squares.log() - 2 * self._exponentials.log()
        parents = self._parents
        return EdgeScores(
            self._target - self.log_normaliser[parents],
            entropy[parents],
            (self._logits / len(self._head.weight))[parents],
            self._target >= self._maximum[parents],
            None if squares is None else squares[parents],
        )


def _tiles(hidden: Tensor, head: Head) -> Iterator[tuple[slice, slice, Tensor, Tensor | None]]:
    """Yields rows, words, their logits in fp32, and the softcap's slope at each of them, None where there is none."""
    kind = "cuda" if hidden.device.type == "cuda" else "cpu"
    n_rows = min(_ROWS[kind], max(len(hidden), 1))
    n_words = max(_TILE_ELEMENTS[kind] // n_rows, 1)
    vocabulary = head.weight.shape[0]
    for row in range(0, len(hidden), n_rows):
        rows = slice(row, min(row + n_rows, len(hidden)))
        states = hidden[rows].to(head.weight.dtype)
        for word in range(0, vocabulary, n_words):
            words = slice(word, min(word + n_words, vocabulary))
            logits = widened(torch.matmul(states, head.weight[words].T))
            if head.bias is not None:
                logits += head.bias[words]
            if head.scale != 1.0:
                logits *= head.scale
            slope = None
            if head.softcap is not None:
                tanh = logits.div_(head.softcap).tanh_()
                logits, slope = tanh * head.softcap, tanh.square_().neg_().add_(1)
            yield rows, words, logits, slope


def _in_tile(
    parents: Tensor, targets: Tensor, rows: slice, logits: Tensor, first: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns which edges have parent and token in a tile, and their row and column there, 0 for the others.

    No edge is picked out, so that a GPU need not tell the host how many there are.
    """
    row, column = parents - rows.start, targets - first
    inside = (row >= 0) & (row < logits.shape[0]) & (column >= 0) & (column < logits.shape[1])
    return inside, row.where(inside, 0), column.where(inside, 0)
