from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_dpo.tree.pairs import PairTokens
from lora_dpo.tree.sampler import MicroBatchSampler, PairPlan, PlannedRows, Shape, Weighted, accumulation_within
from tests.tree.preferences import data_sets, distinct_tokens, entangled, pair, pairs_of


def indices(part: list[Weighted]) -> list[int]:
    return [place.index for place in part]


def real(part: list[Weighted]) -> list[int]:
    return [place.index for place in part if place.weight > 0]


def in_steps(plan: PairPlan, shape: Shape, epoch: int) -> list[list[list[Weighted]]]:
    """Returns the epoch's micro-batches, those of each step together."""
    parts = plan.micro_batches(epoch)
    assert len(parts) % shape.micro_batches == 0
    return [parts[i : i + shape.micro_batches] for i in range(0, len(parts), shape.micro_batches)]


shapes = st.builds(Shape, st.integers(1, 8), st.integers(1, 3), st.integers(1, 4), by_tokens=st.booleans())
seeds = st.sampled_from([None, 0, 7])
budgets = st.sampled_from([None, 1, 12, 40])
plans = {"pairs": data_sets(), "shape": shapes, "seed": seeds, "by_group": st.booleans(), "tokens": budgets}


@given(**plans, epoch=st.integers(0, 2))
def test_every_pair_once_an_epoch(
    pairs: list[PairTokens], shape: Shape, seed: int | None, by_group: bool, tokens: int | None, epoch: int
) -> None:
    plan = PairPlan(pairs, shape, seed=seed, by_group=by_group, chunk_tokens=tokens)
    parts = plan.micro_batches(epoch)
    assert sorted(index for part in parts for index in real(part)) == list(range(len(pairs)))
    assert sorted(index for step in plan.steps(epoch) for index in step) == list(range(len(pairs)))
    assert all(part for part in parts)
    assert all(place.weight >= 0 for part in parts for place in part)


@given(**plans, epoch=st.integers(0, 2))
def test_every_step_is_cut_into_as_many_micro_batches(
    pairs: list[PairTokens], shape: Shape, seed: int | None, by_group: bool, tokens: int | None, epoch: int
) -> None:
    plan = PairPlan(pairs, shape, seed=seed, by_group=by_group, chunk_tokens=tokens)
    steps, cut = plan.steps(epoch), in_steps(plan, shape, epoch)
    assert plan.steps_per_epoch == len(steps) == len(cut)
    assert [len(step) for step in steps[:-1]] == [shape.global_batch] * (len(steps) - 1)
    assert 1 <= len(steps[-1]) <= shape.global_batch
    for step, parts in zip(steps, cut, strict=True):
        assert [index for part in parts for index in real(part)] == step  # consecutive parts
        fillers = [part for part in parts if not real(part)]
        assert len(fillers) == max(0, shape.micro_batches - len(step))
        assert all(len(part) == 1 and part[0].index in step for part in fillers)
        assert all(real(part) == indices(part) for part in parts if real(part))


@given(**plans, world_size=st.integers(1, 4), accumulation=st.integers(1, 5))
def test_steps_do_not_depend_on_how_they_are_cut(
    pairs: list[PairTokens], shape: Shape, seed: int | None, by_group: bool, tokens: int | None,
    world_size: int, accumulation: int,
) -> None:  # fmt: skip
    other = Shape(shape.global_batch, world_size, accumulation, not shape.by_tokens)
    for epoch in range(2):
        one, another = (
            PairPlan(pairs, s, seed=seed, by_group=by_group, chunk_tokens=tokens).steps(epoch) for s in (shape, other)
        )
        assert one == another


@given(**plans)
def test_pairs_weigh_the_same(
    pairs: list[PairTokens], shape: Shape, seed: int | None, by_group: bool, tokens: int | None
) -> None:
    plan = PairPlan(pairs, shape, seed=seed, by_group=by_group, chunk_tokens=tokens)
    for step, parts in zip(plan.steps(1), in_steps(plan, shape, 1), strict=True):
        weights = [place.weight for part in parts for place in part if place.weight > 0]
        # A trainer that divides by the micro-batches gives each of n pairs 1 / n.
        assert weights == pytest.approx([shape.micro_batches / len(step)] * len(step))
        assert sum(place.weight for part in parts for place in part) == pytest.approx(shape.micro_batches)


@given(**plans)
def test_questions_weigh_the_same(
    pairs: list[PairTokens], shape: Shape, seed: int | None, by_group: bool, tokens: int | None
) -> None:
    plan = PairPlan(pairs, shape, seed=seed, by_group=by_group, equal_groups=True, chunk_tokens=tokens)
    for step, parts in zip(plan.steps(1), in_steps(plan, shape, 1), strict=True):
        groups = {pairs[index].group for index in step}
        totals: Counter[int] = Counter()
        weights: dict[int, set[float]] = {}
        for place in (place for part in parts for place in part if place.weight > 0):
            totals[pairs[place.index].group] += place.weight
            weights.setdefault(pairs[place.index].group, set()).add(place.weight)
        assert dict(totals) == pytest.approx(dict.fromkeys(groups, shape.micro_batches / len(groups)))
        assert all(len(values) == 1 for values in weights.values())  # pairs of one question share evenly


def test_weights_by_hand() -> None:
    # A step of question 0 with three pairs and question 1 with one, on 2 processes, one micro-batch each.
    pairs, shape = pairs_of([0, 0, 0, 1]), Shape(4, 2, 1, by_tokens=False)
    parts = PairPlan(pairs, shape, seed=None).micro_batches(0)
    assert parts == [[Weighted(0, 0.5), Weighted(1, 0.5)], [Weighted(2, 0.5), Weighted(3, 0.5)]]
    parts = PairPlan(pairs, shape, seed=None, equal_groups=True).micro_batches(0)
    weights = [place.weight for part in parts for place in part]
    assert weights == pytest.approx([1 / 3, 1 / 3, 1 / 3, 1])  # two processes: 2 * (1 / 6, 1 / 6, 1 / 6, 1 / 2)


@given(pairs=data_sets(), shape=shapes, seed=seeds)
def test_a_question_stays_together_unless_a_step_ends(pairs: list[PairTokens], shape: Shape, seed: int | None) -> None:
    for epoch in range(2):
        order = [index for step in PairPlan(pairs, shape, seed=seed).steps(epoch) for index in step]
        for _, members in groupby(sorted(order, key=lambda index: pairs[index].group), lambda i: pairs[i].group):
            places = [order.index(index) for index in members]
            if len(places) <= shape.global_batch:
                assert places == list(range(places[0], places[0] + len(places)))
                found = [order[place] for place in places]
                assert found == sorted(found)  # in the order given


def test_questions_of_one_size_are_micro_batches() -> None:
    pairs = pairs_of([q for _ in range(2) for q in range(6)])
    for by_tokens in (False, True):
        shape = Shape(6, 3, 1, by_tokens=by_tokens)
        for part in PairPlan(pairs, shape, seed=3).micro_batches(0):
            assert len(part) == 2
            assert len({pairs[index].group for index in indices(part)}) == 1


def test_without_groups_pairs_are_shuffled_one_by_one() -> None:
    pairs, shape = pairs_of([0] * 20 + [1] * 20), Shape(4, 1, 1)
    together, apart = (
        [pairs[index].group for step in PairPlan(pairs, shape, seed=0, by_group=g).steps(0) for index in step]
        for g in (True, False)
    )
    assert sum(one != other for one, other in zip(apart, apart[1:], strict=False)) > 5
    assert sum(one != other for one, other in zip(together, together[1:], strict=False)) < 10  # chunks of 4


def test_equally_many_pairs_are_never_cut_by_tokens() -> None:
    pairs = [pair(0, 0, length=10), pair(1, 1), pair(2, 2), pair(3, 3), pair(4, 4)]
    plan = PairPlan(pairs, Shape(4, 1, 2, equal_pairs=True), seed=None)
    assert [indices(part) for part in plan.micro_batches(0)] == [[0, 1], [2, 3]]
    assert plan.steps(0) == [[0, 1, 2, 3]]  # the fifth is left out
    with pytest.raises(ValueError, match="6 pairs a step cannot be 4 micro-batches of equally many"):
        Shape(6, 2, 2, equal_pairs=True)


def test_cut_by_tokens_or_by_pairs() -> None:
    # 2 + 10 + 1 and three of 2 + 1 + 1 tokens: by tokens the first pair is more than half.
    pairs = [pair(0, 0, length=10), pair(1, 1), pair(2, 2), pair(3, 3)]
    by_tokens, by_pairs = (
        PairPlan(pairs, Shape(4, 1, 2, by_tokens=choice), seed=None).micro_batches(0) for choice in (True, False)
    )
    assert [indices(part) for part in by_tokens] == [[0], [1, 2, 3]]
    assert [indices(part) for part in by_pairs] == [[0, 1], [2, 3]]


def test_shared_tokens_count_once() -> None:
    # Three pairs on one prompt of 30: 30 + 3 * 2 tokens, as many as one pair on a prompt of 34, and not 96.
    shared = [PairTokens([0] * 30, [i], [100 + i], "a") for i in range(3)]
    own = [PairTokens([0] * 34, [i], [100 + i], f"b{i}") for i in range(2)]
    parts = PairPlan([*shared, *own], Shape(5, 1, 3), seed=None).micro_batches(0)
    assert [indices(part) for part in parts] == [[0, 1, 2], [3], [4]]
    largest = [PairPlan([*shared, *own], Shape(5, 1, n), seed=None).largest(0) for n in (1, 3, 5)]
    assert largest == [36 + 36 + 36, 36, 0]  # 0: nothing could be cut further
    # A question that is cut has its prompt in both parts.
    cut = PairPlan([*shared, PairTokens([0] * 30, [3], [103], "a")], Shape(4, 1, 2), seed=None)
    assert [indices(part) for part in cut.micro_batches(0)] == [[0, 1], [2, 3]]
    assert cut.largest(0) == 30 + 2 * 2


def test_a_question_that_is_larger_than_a_step() -> None:
    plan = PairPlan(pairs_of([0] * 5 + [1]), Shape(2, 1, 1), seed=None)
    assert plan.steps(0) == [[0, 1], [2, 3], [4, 5]]
    orders = {str(PairPlan(pairs_of([0] * 6), Shape(2, 1, 1), seed=seed).steps(0)) for seed in range(20)}
    # Its chunks are shuffled, each of them whole.
    assert len(orders) == 6
    assert str([[2, 3], [4, 5], [0, 1]]) in orders


def test_the_order_is_seeded() -> None:
    pairs, shape = pairs_of(list(range(12))), Shape(4, 1, 2)

    def order(seed: int, epoch: int) -> list[list[int]]:
        return PairPlan(pairs, shape, seed=seed).steps(epoch)

    assert order(5, 0) == order(5, 0)
    assert order(5, 3) == order(5, 3)
    assert len({str(order(seed, epoch)) for seed in (5, 6) for epoch in (0, 1, 2)}) == 6


@given(questions=st.lists(st.integers(0, 3), min_size=1, max_size=12), shape=shapes, epoch=st.integers(0, 2))
def test_without_a_seed_the_order_is_kept(questions: list[int], shape: Shape, epoch: int) -> None:
    apart = PairPlan(pairs_of(questions), shape, seed=None, by_group=False)
    assert [index for step in apart.steps(epoch) for index in step] == list(range(len(questions)))
    together = PairPlan(pairs_of(sorted(questions)), shape, seed=None)
    assert [index for step in together.steps(epoch) for index in step] == list(range(len(questions)))


def test_a_question_comes_where_its_first_pair_is() -> None:
    assert PairPlan(pairs_of([3, 1, 3, 2, 1]), Shape(5, 1, 1), seed=None).steps(0) == [[0, 2, 1, 4, 3]]


def test_the_last_step_is_smaller() -> None:
    shape = Shape(4, 2, 1)
    plan = PairPlan(pairs_of(list(range(10))), shape, seed=0)
    assert plan.steps_per_epoch == 3
    assert [len(step) for step in plan.steps(0)] == [4, 4, 2]
    last = in_steps(plan, shape, 0)[-1]
    assert [[place.weight for place in part] for part in last] == [[1.0], [1.0]]


def test_fewer_pairs_than_micro_batches() -> None:
    plan = PairPlan(pairs_of([0, 1, 2]), Shape(4, 2, 2), seed=None)
    weight = 4 / 3
    assert plan.micro_batches(0) == [
        [Weighted(0, weight)],
        [Weighted(1, weight)],
        [Weighted(2, weight)],
        [Weighted(0, 0.0)],
    ]


def test_no_pairs() -> None:
    plan = PairPlan([], Shape(4, 2, 2), seed=0)
    assert plan.steps(0) == plan.micro_batches(0) == []
    assert plan.steps_per_epoch == plan.largest(0) == 0


@given(
    pairs=data_sets(), world_size=st.integers(1, 3), per_process=st.integers(1, 4), more=st.integers(1, 3),
    seed=seeds,
)  # fmt: skip
def test_equally_many_pairs(
    pairs: list[PairTokens], world_size: int, per_process: int, more: int, seed: int | None
) -> None:
    micro_batches = world_size * per_process
    shape = Shape(micro_batches * more, world_size, per_process, by_tokens=False, equal_pairs=True)
    plan = PairPlan(pairs, shape, seed=seed)
    used = [index for part in plan.micro_batches(0) for index in real(part)]
    assert len(used) == len(set(used)) == len(pairs) - len(pairs) % micro_batches
    assert plan.steps_per_epoch == len(plan.steps(0)) == -(-len(used) // shape.global_batch)
    for parts in in_steps(plan, shape, 0):
        assert len({len(part) for part in parts}) == 1
        assert all(place.weight == pytest.approx(1 / len(part)) for part in parts for place in part)


@given(
    pairs=data_sets(max_size=10) | entangled(), global_batch=st.integers(1, 8), world_size=st.integers(1, 3),
    first=st.integers(1, 2), tokens=st.integers(1, 120), seed=st.sampled_from([0, 7]), by_group=st.booleans(),
    by_tokens=st.booleans(), epochs=st.integers(1, 3),
)  # fmt: skip
def test_accumulation_keeps_micro_batches_within_the_budget(
    pairs: list[PairTokens], global_batch: int, world_size: int, first: int, tokens: int, seed: int, by_group: bool,
    by_tokens: bool, epochs: int,
) -> None:  # fmt: skip
    shape = Shape(global_batch, world_size, first, by_tokens=by_tokens)

    def fits(accumulation: int) -> bool:
        """Whether each micro-batch of more than one pair is within the budget, counted as the planner counts."""
        cut = replace(shape, accumulation=accumulation)
        plan = PairPlan(pairs, cut, seed=seed, by_group=by_group, chunk_tokens=tokens)
        parts = [part for epoch in range(epochs) for part in plan.micro_batches(epoch) if len(part) > 1]
        largest = max((distinct_tokens([pairs[index] for index in indices(part)]) for part in parts), default=0)
        counted = max(plan.largest(epoch) for epoch in range(epochs))
        assert largest <= counted
        return counted <= tokens

    found = accumulation_within(pairs, shape, tokens, epochs, seed=seed, by_group=by_group)
    assert found >= first
    assert fits(found)
    assert not any(fits(fewer) for fewer in range(first, found))


def test_accumulation_by_hand() -> None:
    # Pairs of 2 + 7 + 1 = 10 tokens, of questions of their own.
    pairs = [pair(i, i, length=7) for i in range(8)]
    assert [accumulation_within(pairs, Shape(8, 1, 1), budget, 2, seed=0) for budget in (80, 79, 40, 39, 20, 5)] == [
        1, 2, 2, 3, 4, 8,
    ]  # fmt: skip
    assert accumulation_within(pairs, Shape(8, 2, 1), 20, 2, seed=0) == 2
    assert accumulation_within(pairs, Shape(8, 2, 3), 80, 2, seed=0) == 3  # where the search begins
    assert accumulation_within(pairs, Shape(8, 1, 1), 5, 0, seed=0) == 1  # no epochs, nothing to keep within


def alone(question: int, tokens: int) -> PairTokens:
    return PairTokens([question], [question] * (tokens - 2), [1000 + question], question)


def test_accumulation_holds_for_every_epoch() -> None:
    # In one epoch 20 30 30 20 is cut into 50 and 50, in another 30 20 30 20 needs three parts; and three even parts of
    # the first epoch are 20, 60 and 20.
    pairs = [alone(i, tokens) for i, tokens in enumerate((20, 30, 30, 20))]
    for seed in range(20):
        found = accumulation_within(pairs, Shape(4, 1, 1), 50, 3, seed=seed)
        plan = PairPlan(pairs, Shape(4, 1, found), seed=seed, chunk_tokens=50)
        assert [plan.largest(epoch) for epoch in range(3)] <= [50] * 3, seed


def test_accumulation_cuts_as_it_is_told_to() -> None:
    # In the order given, two parts by tokens hold 64 and 40, three 24, 40 and 40; three parts of pairs 12, 8 and 84.
    pairs = [alone(i, tokens) for i, tokens in enumerate((4, 4, 4, 4, 4, 4, 40, 40))]
    shape = Shape(8, 1, 1, by_tokens=False)
    for seed in range(20):
        found = replace(shape, accumulation=accumulation_within(pairs, shape, 60, 1, seed=seed))
        assert PairPlan(pairs, found, seed=seed, chunk_tokens=60).largest(0) <= 60, seed


def test_accumulation_for_equally_many_pairs_divides_the_step() -> None:
    # 12 pairs of 10 tokens on 2 processes: 2 and 4 micro-batches do with 60 and 30 tokens, 6 with 20; 8 do not divide.
    pairs = [pair(i, i, length=7) for i in range(12)]
    shape = Shape(12, 2, 1, equal_pairs=True)
    assert [accumulation_within(pairs, shape, budget, 1, seed=0) for budget in (60, 59, 30, 29, 19, 1)] == [
        1, 2, 2, 3, 6, 6,
    ]  # fmt: skip


def test_a_large_data_set_is_planned() -> None:
    pairs = [PairTokens([i // 2] * 30, [i % 7] * 40, [8 + i % 5] * (5 + i * i % 60), i // 2) for i in range(60_000)]
    found = accumulation_within(pairs, Shape(64, 8, 1), 500, 2, seed=0)
    plan = PairPlan(pairs, Shape(64, 8, found), seed=0, chunk_tokens=500)
    assert found > 1
    assert plan.within(500, 2)
    assert not plan.with_accumulation(found - 1).within(500, 2)


def test_the_sampler_follows_its_plan() -> None:
    plan = PairPlan(pairs_of(list(range(10))), Shape(4, 2, 1), seed=0)
    sampler = MicroBatchSampler(plan)
    assert list(sampler) == list(sampler) == plan.micro_batches(0)
    sampler.set_epoch(2)
    assert list(sampler) == plan.micro_batches(2) != plan.micro_batches(0)
    assert len(sampler) == len(list(sampler)) == 6


def test_rows_come_with_their_weights() -> None:
    rows = PlannedRows([{"text": "a"}, {"text": "b"}])
    assert len(rows) == 2
    assert rows[Weighted(1, 0.25)] == {"text": "b", "weight": 0.25}
