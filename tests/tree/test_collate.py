from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lora_dpo.tree.collate import PlanCollator, ScoredTree, scored_tree
from lora_dpo.tree.score import EdgeScores, Head
from tests.tree.forests import TOKENS, token_lists

SIZE = 4
WORDS = {token: word for word, token in enumerate(TOKENS)}  # the small vocabulary that the head knows


def padded(
    sequences: list[list[int]], scored: list[list[bool]], side: str, pad: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns a batch; the padding's token is a word like any other, and marked as scored to see that it is not."""
    width = max(map(len, sequences), default=0)

    def rows(values: list[list[Any]], filler: int) -> Tensor:
        fillers = [[filler] * (width - len(row)) for row in values]
        pairs = zip(values, fillers, strict=True)
        joined = [row + fill if side == "right" else fill + row for row, fill in pairs]
        return torch.tensor(joined, dtype=torch.long).reshape(len(values), width)

    ids = [[WORDS[token] for token in sequence] for sequence in sequences]
    return rows(ids, pad), rows([[1] * len(row) for row in ids], 0), rows(scored, 1)


def state(prefix: tuple[int, ...]) -> Tensor:
    """Returns the hidden state of a model that sees its past: any function of the prefix will do."""
    return torch.randn(SIZE, generator=torch.Generator().manual_seed(hash(prefix) % 2**31))


def states_of_nodes(found: ScoredTree) -> Tensor:
    prefix, states = [], []
    for token, depth in zip(found.tree.ids[0].tolist(), found.tree.depth[0].tolist(), strict=True):
        prefix = [*prefix[:depth], token]
        states.append(state(tuple(prefix)))
    return torch.stack(states) if states else torch.zeros(0, SIZE)


def head() -> Head:
    generator = torch.Generator().manual_seed(1)
    return Head(torch.randn(len(WORDS), SIZE, generator=generator), torch.randn(len(WORDS), generator=generator))


def by_sequence(ids: Tensor, present: Tensor, scored: Tensor) -> tuple[EdgeScores, dict[tuple[int, ...], Tensor]]:
    """Scores each sequence for itself, token by token; returns as well the hidden states, which collect gradients."""
    states: dict[tuple[int, ...], Tensor] = {}
    scores = EdgeScores(*(torch.zeros(ids.shape[0], max(ids.shape[1] - 1, 0)) for _ in EdgeScores._fields))
    for row in range(len(ids)):
        prefix: tuple[int, ...] = ()
        for column in range(ids.shape[1]):
            if not present[row, column]:
                continue
            token = int(ids[row, column])
            if prefix and scored[row, column]:
                hidden = states.setdefault(prefix, state(prefix).requires_grad_())
                logits = head().weight @ hidden + head().bias
                log_probs = logits.log_softmax(0)
                squares = (2 * log_probs).logsumexp(0)
                values = (
                    log_probs[token],
                    -(log_probs.exp() @ log_probs),
                    logits.mean(),
                    logits.argmax() == token,
                    squares,
                )
                for part, value in zip(scores, values, strict=True):
                    part[row, column - 1] = value
            prefix = (*prefix, token)
    return scores, states


@st.composite
def batches(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    """Draws a padded batch of at least one token, with any of its tokens scored."""
    sequences = draw(token_lists(min_size=1, max_size=5, longest=4).filter(any))
    scored = [draw(st.lists(st.booleans(), min_size=len(row), max_size=len(row))) for row in sequences]
    return padded(
        sequences, scored, draw(st.sampled_from(["left", "right"])), draw(st.sampled_from(range(len(TOKENS))))
    )


@given(batch=batches())
def test_scores_are_those_of_each_sequence_for_itself(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    found = scored_tree(*batch)
    hidden = states_of_nodes(found).requires_grad_()
    scores = found.score(hidden, head(), with_squares=True)
    expected, states = by_sequence(*batch)
    for name, one, other in zip(EdgeScores._fields, scores, expected, strict=True):
        assert one.shape == (batch[0].shape[0], batch[0].shape[1] - 1)
        torch.testing.assert_close(one.float(), other, atol=2e-5, rtol=2e-5, msg=lambda m, n=name: f"{n}: {m}")
    scale = torch.arange(1.0, scores.log_probs.numel() + 1).reshape(scores.log_probs.shape)
    (scores.log_probs * scale).sum().backward()
    if states:
        (expected.log_probs * scale).sum().backward()
    prefix: list[int] = []
    for node, (token, depth) in enumerate(zip(found.tree.ids[0].tolist(), found.tree.depth[0].tolist(), strict=True)):
        prefix = [*prefix[:depth], token]
        own = states.get(tuple(prefix))
        wanted = torch.zeros(SIZE) if own is None else own.grad
        torch.testing.assert_close(hidden.grad[node], wanted, atol=1e-4, rtol=1e-4)


@given(batch=batches())
def test_every_distinct_edge_and_parent_is_there_once(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    ids, present, scored = (part.bool() if i else part for i, part in enumerate(batch))
    found = scored_tree(*batch)
    prefixes, edges = set(), set()
    for row in range(len(ids)):
        tokens = ids[row][present[row]].tolist()
        marks = scored[row][present[row]].tolist()
        prefixes |= {tuple(tokens[: i + 1]) for i in range(len(tokens))}
        edges |= {tuple(tokens[: i + 1]) for i in range(1, len(tokens)) if marks[i]}
    assert found.tree.ids.shape == (1, len(prefixes))
    assert found.n_tokens == int(present.sum())
    assert len(found.edges) == len(found.targets) == len(edges)
    assert len(found.parents) == len({edge[:-1] for edge in edges})
    assert found.parents.tolist() == sorted(set(found.parents.tolist()))
    assert sorted(set(found.slots.flatten().tolist()) - {0}) == list(range(1, len(edges) + 1))
    assert {part.dtype for part in (found.parents, found.edges, found.targets, found.slots)} == {torch.int64}


def test_a_known_batch() -> None:
    # Prompt 1 2, answers 3 4 and 3 (the other's beginning); then the first sequence again.
    ids = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 0], [1, 2, 3, 4]])
    present = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 1]])
    found = scored_tree(ids, present, torch.tensor([[0, 0, 1, 1], [0, 0, 1, 0], [0, 0, 1, 1]]))
    assert found.tree.ids.tolist() == [[1, 2, 3, 4]]
    assert found.parents.tolist() == [1, 2]
    assert found.edges.tolist() == [0, 1]
    assert found.targets.tolist() == [3, 4]
    assert found.slots.tolist() == [[0, 1, 2], [0, 1, 0], [0, 1, 2]]
    assert found.n_tokens == 11


def test_one_parent_of_several_edges() -> None:
    ids = torch.tensor([[1, 2], [1, 3], [1, 2], [2, 3]])
    ones = torch.ones_like(ids)
    found = scored_tree(ids, ones, ones)
    # Nodes: 1, 1 2, 1 3, 2, 2 3. All slots are taken, so that none is the "nothing" of other batches.
    assert found.parents.tolist() == [0, 3]
    assert found.edges.tolist() == [0, 0, 1]
    assert found.targets.tolist() == [2, 3, 3]
    assert found.slots.tolist() == [[1], [2], [1], [3]]


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_first_token_is_never_scored(side: str) -> None:
    found = scored_tree(*padded([[1, 256, 0], [1, 70_000], [256]], [[True] * 3, [True] * 2, [True]], side))
    assert found.slots.tolist() == (
        [[1, 2], [0, 3], [0, 0]] if side == "left" else [[1, 2], [3, 0], [0, 0]]
    )  # by node: 1 256, 1 256 0, 1 70000
    assert found.targets.tolist() == [WORDS[256], WORDS[0], WORDS[70_000]]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("sequences", [[[1, 256, 0], [1, 0]], [[1], [256]], [[1, 0], []]])
def test_nothing_scored(sequences: list[list[int]], side: str) -> None:
    batch = padded(sequences, [[False] * len(row) for row in sequences], side)
    found = scored_tree(*batch)
    assert found.parents.shape == found.edges.shape == found.targets.shape == (0,)
    assert found.slots.tolist() == [[0] * (batch[0].shape[1] - 1)] * len(sequences)
    hidden = states_of_nodes(found).requires_grad_()
    scores = found.score(hidden, head(), with_squares=True)
    for part in scores:
        assert part.shape == found.slots.shape
        assert not part.any()
    scores.log_probs.sum().backward()
    assert not hidden.grad.any()


def test_nothing_but_padding() -> None:
    nothing = torch.zeros(2, 3, dtype=torch.long)
    found = scored_tree(nothing, nothing, nothing)
    assert found.tree.ids.shape == (1, 0)
    assert found.slots.tolist() == [[0, 0], [0, 0]]
    assert found.n_tokens == 0


def test_to_another_device() -> None:
    found = scored_tree(*padded([[1, 256, 0], [1, 0]], [[False, True, True], [False, True]], "right"))
    moved = found.to("meta", non_blocking=True)
    for name in ("parents", "edges", "targets", "slots"):
        assert getattr(moved, name).device.type == "meta"
        assert getattr(found, name).device.type == "cpu"
    assert moved.tree.ids.device.type == "meta"
    assert found.tree.ids.device.type == "cpu"
    assert moved.n_tokens == found.n_tokens == 5
    same = found.to("cpu")
    for name in ("parents", "edges", "targets", "slots"):
        assert torch.equal(getattr(same, name), getattr(found, name))
    assert same.tree is found.tree


@pytest.mark.parametrize("trees", [False, True])
def test_the_collator_adds_weights_and_trees(trees: bool) -> None:
    batch = padded([[1, 256, 0], [1, 0]], [[False, True, True], [False, True]], "right")
    names = ("input_ids", "attention_mask", "completion_mask")
    seen = []

    def collator(examples: list[dict[str, Any]]) -> dict[str, Any]:
        seen.append(examples)
        return dict(zip(names, batch, strict=True))

    examples = [{"weight": 0.25}, {}]
    found = PlanCollator(collator, trees=trees)(examples)
    assert seen == [examples]
    assert list(found) == ["pair_weights", *names, *(["tree"] if trees else [])]  # Trainer counts the first one's rows
    assert found["pair_weights"].tolist() == [[0.25, 1.0]]
    assert all(found[name] is part for name, part in zip(names, batch, strict=True))
    if trees:
        assert torch.equal(found["tree"].slots, scored_tree(*batch).slots)
