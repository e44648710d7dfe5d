from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lora_dpo.tree import score
from lora_dpo.tree.score import EdgeScores, Head, score_edges

# Rows and logits of a tile, from one logit at a time to all at once; the vocabulary of 11 is no multiple of any.
TILES = [(1, 1), (2, 6), (3, 12), (512, 2**20)]
SHAPES = [{}, {"scale": 0.3}, {"softcap": 1.5}, {"scale": 2.0, "softcap": 0.8}]


all_scores = functools.partial(score_edges, with_squares=True)


def tiles(patch: pytest.MonkeyPatch, rows: int, elements: int) -> None:
    patch.setitem(score._ROWS, "cpu", rows)
    patch.setitem(score._TILE_ELEMENTS, "cpu", elements)


def case(
    parents: int = 7,
    edges: int = 12,
    words: int = 11,
    size: int = 5,
    bias: bool = True,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor]:
    """Returns hidden states, edges' parents and targets, weight, bias, and a gradient of the log-probabilities."""
    generator = torch.Generator().manual_seed(parents * 100 + edges * 10 + words)
    hidden, weight = (torch.randn(n, size, generator=generator).to(dtype) for n in (parents, words))
    of_parent = torch.randint(parents, (edges,), generator=generator) if parents else torch.zeros(0, dtype=torch.long)
    targets = torch.randint(words, (edges,), generator=generator)
    biases = torch.randn(words, generator=generator).to(dtype) if bias else None
    return hidden, of_parent, targets, weight, biases, torch.randn(edges, generator=generator)


def reference(hidden: Tensor, parents: Tensor, targets: Tensor, head: Head) -> EdgeScores:
    """Returns the scores by log_softmax over the whole vocabulary, in double precision."""
    logits = hidden.double() @ head.weight.double().T
    logits = head.scale * (logits if head.bias is None else logits + head.bias.double())
    if head.softcap is not None:
        logits = head.softcap * (logits / head.softcap).tanh()
    log_probs = logits.log_softmax(-1)
    probs = log_probs.exp()
    return EdgeScores(
        log_probs[parents, targets],
        -(probs * log_probs).sum(-1)[parents],
        logits.mean(-1)[parents],
        logits.argmax(-1)[parents] == targets,
        probs.square().sum(-1).log()[parents],
    )


def leaves(*parts: Tensor | None) -> list[Tensor | None]:
    return [None if part is None else part.detach().clone().requires_grad_() for part in parts]


def assert_close(found: EdgeScores, expected: EdgeScores, tolerance: float = 1e-5) -> None:
    for name, one, other in zip(EdgeScores._fields, found, expected, strict=True):
        if name == "is_top1":
            assert one.tolist() == other.tolist()
        else:
            assert one.dtype == torch.float32
            torch.testing.assert_close(
                one.double(), other, atol=tolerance, rtol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
            )


@pytest.mark.parametrize("trained", [False, True])
def test_two_words_by_hand(trained: bool) -> None:
    # h = 1, W = (ln 3, 0): p = (3/4, 1/4).
    log3 = math.log(3)
    hidden, weight = leaves(torch.ones(1, 1), torch.tensor([[log3], [0.0]]))
    weight.requires_grad_(trained)
    scores = all_scores(hidden, torch.tensor([0, 0]), torch.tensor([0, 1]), Head(weight))
    assert scores.log_probs.tolist() == pytest.approx([math.log(3 / 4), math.log(1 / 4)])
    entropy = 3 / 4 * math.log(4 / 3) + 1 / 4 * math.log(4)
    assert scores.entropy.tolist() == pytest.approx([entropy, entropy])
    assert scores.mean_logits.tolist() == pytest.approx([log3 / 2, log3 / 2])
    assert scores.is_top1.tolist() == [True, False]
    sum_of_squares = math.log(9 / 16 + 1 / 16)
    assert scores.log_sum_sq_probs.tolist() == pytest.approx([sum_of_squares, sum_of_squares])
    # d/dh log p_0 = ln 3 - 3/4 ln 3, d/dh log p_1 = 0 - 3/4 ln 3; the second edge counts ten times.
    (scores.log_probs * torch.tensor([1.0, 10.0])).sum().backward()
    assert hidden.grad.item() == pytest.approx(log3 / 4 - 10 * 3 / 4 * log3)
    if trained:  # d/dW_0 = h (1 - 3/4), and -10 * 3/4; d/dW_1 = h (0 - 1/4), and 10 * (1 - 1/4)
        assert weight.grad.flatten().tolist() == pytest.approx([1 / 4 - 7.5, -1 / 4 + 7.5])


def test_two_words_with_softcap_by_hand() -> None:
    # softcap * tanh(scale * (W h + b) / softcap) with W h = (1, -1), b = (1, 1), scale 2, softcap 4: (4 tanh 1, 0).
    capped = 4 * math.tanh(1)
    (hidden,) = leaves(torch.ones(1, 1))
    head = Head(torch.tensor([[1.0], [-1.0]]), torch.tensor([1.0, 1.0]), 2.0, 4.0)
    scores = all_scores(hidden, torch.tensor([0]), torch.tensor([0]), head)
    p = math.exp(capped) / (math.exp(capped) + 1)
    assert scores.log_probs.item() == pytest.approx(math.log(p), rel=1e-5)
    assert scores.mean_logits.item() == pytest.approx(capped / 2)
    scores.log_probs.sum().backward()
    # Slopes of the logits by h: 2 (1 - tanh^2 1) * 1, and 2 (1 - 0) * -1.
    slopes = (2 * (1 - math.tanh(1) ** 2), -2.0)
    assert hidden.grad.item() == pytest.approx(slopes[0] - p * slopes[0] - (1 - p) * slopes[1], rel=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("rows", "elements"), TILES)
def test_frozen_head(
    rows: int, elements: int, bias: bool, shape: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiles(monkeypatch, rows, elements)
    hidden, parents, targets, weight, biases, gradient = case(bias=bias)
    head = Head(weight, biases, **shape)
    ours, theirs = leaves(hidden, hidden)
    found, expected = all_scores(ours, parents, targets, head), reference(theirs, parents, targets, head)
    assert_close(found, expected)
    found.log_probs.backward(gradient)
    expected.log_probs.backward(gradient.double())
    torch.testing.assert_close(ours.grad, theirs.grad, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("trained", ["weight", "bias", "both"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("rows", "elements"), TILES)
def test_trained_head(
    rows: int, elements: int, shape: dict[str, float], trained: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiles(monkeypatch, rows, elements)
    *inputs, gradient = case()
    gradients = []
    for function in (all_scores, reference):
        hidden, weight, bias = leaves(inputs[0], inputs[3], inputs[4])
        weight.requires_grad_(trained != "bias")
        bias.requires_grad_(trained != "weight")
        scores = function(hidden, inputs[1], inputs[2], Head(weight, bias, **shape))
        scores.log_probs.backward(gradient.to(scores.log_probs.dtype))
        gradients.append([hidden.grad, weight.grad, bias.grad])
        if function is all_scores:
            found = scores
    assert_close(found, scores)
    for one, other in zip(*gradients, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, atol=2e-5, rtol=2e-5)


def test_a_trained_head_without_bias_and_with_frozen_states() -> None:
    hidden, parents, targets, weight, _, gradient = case()
    ours, theirs = leaves(weight, weight)
    all_scores(hidden, parents, targets, Head(ours)).log_probs.backward(gradient)
    reference(hidden, parents, targets, Head(theirs)).log_probs.backward(gradient.double())
    torch.testing.assert_close(ours.grad, theirs.grad, atol=2e-5, rtol=2e-5)


@given(
    parents=st.integers(1, 6), edges=st.integers(0, 9), words=st.integers(1, 9), trained=st.booleans(),
    rows=st.integers(1, 7), elements=st.integers(1, 40), softcap=st.sampled_from([None, 0.8]),
)  # fmt: skip
@settings(max_examples=60)
def test_any_tiling(
    parents: int, edges: int, words: int, trained: bool, rows: int, elements: int, softcap: float | None
) -> None:
    hidden, of_parent, targets, weight, bias, gradient = case(parents, edges, words)
    ours, theirs = leaves(hidden, hidden)
    weight.requires_grad_(trained)
    head = Head(weight, bias, 0.7, softcap)
    with pytest.MonkeyPatch.context() as patch:
        tiles(patch, rows, elements)
        found = all_scores(ours, of_parent, targets, head)
        found.log_probs.backward(gradient)
    expected = reference(theirs, of_parent, targets, head)
    expected.log_probs.backward(gradient.double())
    assert_close(found, expected)
    torch.testing.assert_close(ours.grad, theirs.grad, atol=2e-5, rtol=2e-5)


def test_edges_of_one_parent_share_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, *_, weight, bias, _ = case(parents=2)
    seen = []
    original = score._tiles

    def counted(states: Tensor, head: Head) -> Any:
        seen.append(len(states))
        return original(states, head)

    monkeypatch.setattr(score, "_tiles", counted)
    parents, targets = torch.tensor([1, 0, 1, 1, 1]), torch.tensor([3, 3, 0, 3, 10])
    (states,) = leaves(hidden)
    found = all_scores(states, parents, targets, Head(weight, bias))
    found.log_probs.sum().backward()
    assert seen == [2]  # two rows in one pass, and no second one for the gradient
    assert found.log_probs[0] == found.log_probs[3]
    assert_close(found, reference(hidden, parents, targets, Head(weight, bias)))


@pytest.mark.parametrize(("rows", "elements"), TILES)
def test_large_logits_that_grow_and_shrink(rows: int, elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tiles(monkeypatch, rows, elements)
    weight = torch.tensor([[-300.0], [300.0], [-1000.0], [301.0], [0.0]])
    hidden, parents, targets = torch.tensor([[1.0], [-1.0]]), torch.tensor([0, 0, 1, 1]), torch.tensor([1, 3, 2, 3])
    ours, theirs = leaves(hidden, hidden)
    found, expected = (f(h, parents, targets, Head(weight)) for f, h in ((all_scores, ours), (reference, theirs)))
    assert_close(found, expected, tolerance=1e-4)
    assert found.log_probs[:2].tolist() == pytest.approx(
        [-1 - math.log1p(math.exp(-1)), -math.log1p(math.exp(-1))], abs=1e-4
    )
    found.log_probs.sum().backward()
    expected.log_probs.sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-3, rtol=1e-4)


def test_squares_are_summed_only_where_they_are_wanted() -> None:
    hidden, parents, targets, weight, bias, _ = case()
    scores = score_edges(hidden, parents, targets, Head(weight, bias))
    assert scores.log_sum_sq_probs is None
    wanted = all_scores(hidden, parents, targets, Head(weight, bias))
    assert all(torch.equal(one, other) for one, other in zip(scores[:-1], wanted[:-1], strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_statistics_are_fp32_under_autocast(dtype: torch.dtype) -> None:
    """Sums over a large vocabulary of equally likely tokens with large logits would overflow or lose their digits."""
    hidden, weight = torch.ones(2, 4), torch.full((50_000, 4), -15.0)
    states = hidden.clone().requires_grad_()
    with torch.autocast("cpu", dtype):
        scores = all_scores(states, torch.tensor([0, 1]), torch.tensor([3, 4]), Head(weight))
    assert scores.entropy.tolist() == pytest.approx([math.log(50_000)] * 2, abs=1e-3)
    assert scores.log_sum_sq_probs.tolist() == pytest.approx([-math.log(50_000)] * 2, abs=1e-3)


def test_ties_are_all_the_most_likely() -> None:
    scores = all_scores(
        torch.ones(1, 1), torch.tensor([0, 0, 0]), torch.arange(3), Head(torch.tensor([[2.0], [2.0], [1.0]]))
    )
    assert scores.is_top1.tolist() == [True, True, False]


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("softcap", [None, 0.8])
@pytest.mark.parametrize("parents", [0, 3])
def test_no_edges(parents: int, softcap: float | None, trained: bool) -> None:
    states, weight, bias = leaves(torch.randn(parents, 5), torch.randn(11, 5), torch.randn(11))
    weight.requires_grad_(trained)
    bias.requires_grad_(trained)
    none = torch.zeros(0, dtype=torch.long)
    scores = all_scores(states, none, none, Head(weight, bias, 1.0, softcap))
    assert [part.shape for part in scores] == [(0,)] * 5
    (scores.log_probs.sum() + 0.0).backward()
    assert states.grad.tolist() == [[0.0] * 5] * parents
    if trained:
        assert weight.grad.abs().sum() == bias.grad.abs().sum() == 0


@pytest.mark.parametrize("trained", [False, True])
def test_only_log_probs_carry_a_gradient(trained: bool) -> None:
    hidden, parents, targets, weight, bias, _ = case()
    states, weight = leaves(hidden, weight)
    scores = all_scores(states, parents, targets, Head(weight.requires_grad_(trained), bias))
    assert [part.requires_grad for part in scores] == [True, False, False, False, False]


@pytest.mark.parametrize("trained", [False, True])
def test_a_loss_that_hands_back_no_gradient(trained: bool) -> None:
    class Dropped(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, log_probs: Tensor) -> Tensor:
            return log_probs.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> None:
            return None

    hidden, parents, targets, weight, bias, _ = case()
    states, weight = leaves(hidden, weight)
    scores = all_scores(states, parents, targets, Head(weight.requires_grad_(trained), bias))
    (Dropped.apply(scores.log_probs).sum() + states.sum()).backward()
    assert torch.equal(states.grad, torch.ones_like(states))
    assert weight.grad is None


@pytest.mark.parametrize("trained", [False, True])
def test_without_gradients(trained: bool) -> None:
    hidden, parents, targets, weight, bias, _ = case()
    head = Head(weight.requires_grad_(trained), bias)
    with torch.no_grad():
        scores = all_scores(hidden, parents, targets, head)
    assert not scores.log_probs.requires_grad
    assert_close(scores, reference(hidden, parents, targets, head))


def plain(hidden: Tensor, parents: Tensor, targets: Tensor, head: Head) -> Tensor:
    """Returns log-probabilities as a model in bf16 would without any care."""
    logits = torch.nn.functional.linear(hidden, head.weight)
    return logits.log_softmax(-1)[parents, targets]


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize(("rows", "elements"), [(16, 640), (512, 2**20)])
def test_bf16_is_no_further_from_fp32_than_plain_bf16(
    rows: int, elements: int, trained: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiles(monkeypatch, rows, elements)

    def of(function: Callable[..., Any], edges: int, dtype: torch.dtype) -> list[Tensor]:
        hidden, parents, targets, weight, _, gradient = case(40, edges, 120, 32, bias=False, dtype=torch.bfloat16)
        hidden, weight = leaves(hidden.to(dtype), weight.to(dtype))
        weight.requires_grad_(trained)
        found = function(hidden, parents, targets, Head(weight))
        log_probs = found.log_probs if isinstance(found, EdgeScores) else found
        log_probs.backward(gradient.to(log_probs.dtype))
        assert hidden.grad.dtype == dtype
        return [part.detach().double() for part in (log_probs, hidden.grad, weight.grad) if part is not None]

    squared_errors = torch.zeros(3 if trained else 2, 2, dtype=torch.float64)
    for edges in range(60, 66):  # one case's last roundings may fall either way
        exact = of(reference, edges, torch.float32)
        ours, theirs = of(score_edges, edges, torch.bfloat16), of(plain, edges, torch.bfloat16)
        for sums, right, *both in zip(squared_errors, exact, ours, theirs, strict=True):
            sums.add_(torch.stack([(part - right).square().sum() for part in both]))
            assert (both[0] - right).norm() < 0.01 * right.norm()
    assert (squared_errors > 0).all()
    ours, theirs = squared_errors.T
    assert ours[0] <= theirs[0]
    assert (ours[1:] <= 1.05 * theirs[1:]).all(), squared_errors  # each tile of a product is rounded for itself


def test_fp32_states_before_a_bf16_head() -> None:
    hidden, parents, targets, weight, _, gradient = case(bias=False)
    (states,) = leaves(hidden)
    head = Head(weight.bfloat16())
    scores = all_scores(states, parents, targets, head)
    scores.log_probs.backward(gradient)
    assert scores.log_probs.dtype == states.grad.dtype == torch.float32
    (exact,) = leaves(hidden)
    expected = reference(exact, parents, targets, head).log_probs
    expected.backward(gradient.double())
    torch.testing.assert_close(scores.log_probs.double(), expected, atol=5e-2, rtol=0)
    torch.testing.assert_close(states.grad, exact.grad, atol=5e-2, rtol=0)
