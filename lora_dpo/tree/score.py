"""Log-probabilities of edges: each parent's hidden state predicts its children, over tiles of the vocabulary."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

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
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None


class EdgeScores(NamedTuple):
    """What the tiles give, for each edge; all but `log_probs` are for metrics and carry no gradient.

    Attributes:
        log_probs: Log-probability of the child's token, shape (E,), fp32.
        entropy: Entropy of the parent's prediction, in nats, shape (E,).
        mean_logits: Mean of the parent's logits over the vocabulary, shape (E,).
        is_top1: Whether the child's token is the most likely one, shape (E,).
        log_sum_sq_probs: log of the sum of squared probabilities (WPO's weights need it), shape (E,).
    """

    log_probs: Tensor
    entropy: Tensor
    mean_logits: Tensor
    is_top1: Tensor
    log_sum_sq_probs: Tensor


def score_edges(hidden: Tensor, parents: Tensor, targets: Tensor, head: Head) -> EdgeScores:
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
    """
    trained = head.weight.requires_grad or (head.bias is not None and head.bias.requires_grad)
    function = _TrainedHead if trained and torch.is_grad_enabled() else _FrozenHead
    return EdgeScores(*function.apply(hidden, head.weight, head.bias, parents, targets, head.scale, head.softcap))


class _FrozenHead(torch.autograd.Function):
    """Forms the gradient in the forward pass, where one is wanted."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, parents: Tensor, targets: Tensor,
        scale: float, softcap: float | None,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        ctx.set_materialize_grads(False)
        head = Head(weight, bias, scale, softcap)
        statistics = _Statistics(hidden, head, parents, targets, with_gradient=ctx.needs_input_grad[0])
        ctx.shape, ctx.dtype = hidden.shape, hidden.dtype
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(statistics.edge_gradients(weight, targets, parents).to(hidden.dtype), parents)
        scores = statistics.scores(parents)
        ctx.mark_non_differentiable(*scores[1:])
        return scores

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        if gradient is None:
            return (None,) * 7
        of_edge, parents = ctx.saved_tensors
        of_hidden = torch.zeros(ctx.shape, device=gradient.device)
        of_hidden.index_add_(0, parents, of_edge * gradient[:, None])
        return of_hidden.to(ctx.dtype), *(None,) * 6


class _TrainedHead(torch.autograd.Function):
    """Computes the tiles again in the backward pass, for the gradients of hidden states, weight and bias."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, parents: Tensor, targets: Tensor,
        scale: float, softcap: float | None,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        ctx.set_materialize_grads(False)
        statistics = _Statistics(hidden, Head(weight, bias, scale, softcap), parents, targets, with_gradient=False)
        ctx.save_for_backward(hidden, weight, bias, parents, targets, statistics.log_normaliser)
        ctx.head = scale, softcap
        scores = statistics.scores(parents)
        ctx.mark_non_differentiable(*scores[1:])
        return scores

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        if gradient is None:
            return (None,) * 7
        hidden, weight, bias, parents, targets, log_normaliser = ctx.saved_tensors
        of_hidden = torch.zeros(hidden.shape, device=hidden.device)
        of_weight = torch.zeros(weight.shape, device=weight.device)
        of_bias = None if bias is None else torch.zeros(bias.shape, device=bias.device)
        total = torch.zeros(len(hidden), device=hidden.device).index_add_(0, parents, gradient.float())
        for rows, words, logits, slope in _tiles(hidden, Head(weight, bias, *ctx.head)):
            of_logits = (logits - log_normaliser[rows, None]).exp_().mul_(-total[rows, None])
            inside, row, column = _in_tile(parents, targets, rows, logits, words.start)
            of_logits.index_put_((row, column), gradient.float().where(inside, 0), accumulate=True)
            of_logits.mul_(slope)
            low = of_logits.to(weight.dtype)
            of_hidden[rows] += torch.matmul(low, weight[words]).float()
            of_weight[words] += torch.matmul(low.T, hidden[rows].to(weight.dtype)).float()
            if of_bias is not None:
                of_bias[words] += of_logits.sum(0)
        of_bias = None if of_bias is None else of_bias.to(bias.dtype)
        return of_hidden.to(hidden.dtype), of_weight.to(weight.dtype), of_bias, None, None, None, None


class _Statistics:
    """One pass over the vocabulary: running sums of each parent, rescaled whenever its maximum grows."""

    def __init__(self, hidden: Tensor, head: Head, parents: Tensor, targets: Tensor, *, with_gradient: bool) -> None:
        count, device = len(hidden), hidden.device
        zeros = torch.zeros(count, device=device)
        self._maximum = torch.full_like(zeros, float("-inf"))
        self._exponentials, self._squares, self._logits = zeros.clone(), zeros.clone(), zeros.clone()
        self._weighted_logits = zeros
        self._expected = torch.zeros(count, hidden.shape[1], device=device) if with_gradient else None
        self._target = torch.zeros(len(targets), device=device)
        self._slope = torch.full_like(self._target, head.scale)
        self._vocabulary = head.weight.shape[0]
        for rows, words, logits, slope in _tiles(hidden, head):
            inside, row, column = _in_tile(parents, targets, rows, logits, words.start)
            self._target = logits[row, column].where(inside, self._target)
            if isinstance(slope, Tensor):
                self._slope = slope[row, column].where(inside, self._slope)
            self._add(rows, words, logits, slope, head.weight)
        self.log_normaliser = self._maximum + self._exponentials.log()

    def _add(self, rows: slice, words: slice, logits: Tensor, slope: Tensor | float, weight: Tensor) -> None:
        self._logits[rows] += logits.sum(1)
        maximum = torch.maximum(self._maximum[rows], logits.amax(1))
        shrink = (self._maximum[rows] - maximum).exp_()
        self._maximum[rows] = maximum
        weights = (logits - maximum[:, None]).exp_()
        self._exponentials[rows] = self._exponentials[rows] * shrink + weights.sum(1)
        self._weighted_logits[rows] = self._weighted_logits[rows] * shrink + torch.linalg.vecdot(weights, logits)
        self._squares[rows] = self._squares[rows] * shrink.square() + torch.linalg.vecdot(weights, weights)
        if self._expected is not None:
            self._expected[rows] *= shrink[:, None]
            weights = weights.mul_(slope).to(weight.dtype)
            if weight.dtype == torch.float32:
                self._expected[rows].addmm_(weights, weight[words])
            else:
                self._expected[rows] += torch.matmul(weights, weight[words])

    def edge_gradients(self, weight: Tensor, targets: Tensor, parents: Tensor) -> Tensor:
        expected = self._expected / self._exponentials[:, None]
        return weight[targets].float().mul_(self._slope[:, None]).sub_(expected[parents])

    def scores(self, parents: Tensor) -> tuple[Tensor, ...]:
        entropy = self.log_normaliser - self._weighted_logits / self._exponentials
        sum_of_squares = self._squares.log() - 2 * self._exponentials.log()
        return (
            self._target - self.log_normaliser[parents],
            entropy[parents],
            (self._logits / self._vocabulary)[parents],
            self._target >= self._maximum[parents],
            sum_of_squares[parents],
        )


def _tiles(hidden: Tensor, head: Head) -> Iterator[tuple[slice, slice, Tensor, Tensor | float]]:
    """Yields rows, words, their logits in fp32, and the slope of each logit by the hidden state's product with W."""
    kind = "cuda" if hidden.device.type == "cuda" else "cpu"
    n_rows = min(_ROWS[kind], max(len(hidden), 1))
    n_words = max(_TILE_ELEMENTS[kind] // n_rows, 1)
    vocabulary = head.weight.shape[0]
    for row in range(0, len(hidden), n_rows):
        rows = slice(row, min(row + n_rows, len(hidden)))
        states = hidden[rows].to(head.weight.dtype)
        for word in range(0, vocabulary, n_words):
            words = slice(word, min(word + n_words, vocabulary))
            logits = torch.matmul(states, head.weight[words].T).float()
            if head.bias is not None:
                logits += head.bias[words]
            if head.scale != 1.0:
                logits *= head.scale
            slope: Tensor | float = head.scale
            if head.softcap is not None:
                tanh = logits.div_(head.softcap).tanh_()
                logits, slope = tanh * head.softcap, tanh.square_().neg_().add_(1).mul_(head.scale)
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
