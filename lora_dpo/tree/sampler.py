"""Which pairs travel together: whole questions in one micro-batch, and the same number of micro-batches everywhere."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
from torch.utils.data import Dataset, Sampler

from lora_dpo.tree.forest import build_forest


@dataclass(frozen=True, slots=True)
class PairTokens:
    """One pair as the planner sees it.

    Attributes:
        prompt: Prompt tokens.
        chosen: Tokens of the better answer.
        rejected: Tokens of the worse answer.
        group: What belongs together: pairs of one question.
    """

    prompt: Sequence[int]
    chosen: Sequence[int]
    rejected: Sequence[int]
    group: Hashable

    @property
    def sequences(self) -> list[list[int]]:
        """Prompt and answer, twice."""
        return [[*self.prompt, *self.chosen], [*self.prompt, *self.rejected]]


@dataclass(frozen=True, slots=True)
class Weighted:
    """A pair's place in a micro-batch.

    Attributes:
        index: The pair's row in the data set.
        weight: Its factor in the micro-batch's sum of losses; 0 for a pair that only fills a place.
    """

    index: int
    weight: float


@dataclass(frozen=True, slots=True)
class Shape:
    """How an optimizer step is cut.

    Attributes:
        global_batch: Pairs a step, over all processes.
        world_size: Processes.
        accumulation: Micro-batches a step and process.
        by_tokens: Cut where distinct tokens are equal; otherwise where pairs are.
        equal_pairs: Every micro-batch has equally many pairs; what is left over at an epoch's end is left out. For
            losses that are no mean over pairs.
    """

    global_batch: int
    world_size: int
    accumulation: int
    by_tokens: bool = True
    equal_pairs: bool = False

    @property
    def micro_batches(self) -> int:
        """Micro-batches a step, over all processes."""
        return self.world_size * self.accumulation


class PairPlan:
    """Plans every epoch's micro-batches.

    Steps do not depend on the number of processes: they are filled with questions in a seeded order, and a question
    that is larger than a step, or than a micro-batch may be, is cut into consecutive chunks. Only then is each step
    cut into `Shape.micro_batches` consecutive parts of about equal cost, each of at least one pair; where a step has
    fewer pairs, a pair of weight 0 fills the place, so that every process makes the same number of calls.

    The weights make the sum over all micro-batches the exact weighted mean over the step's pairs, whatever the cut: a
    trainer divides by the accumulation and the processes, so each weight carries both as a factor.

    Args:
        pairs: The data set.
        shape: How a step is cut.
        seed: Of the order; None keeps the order given, as for an evaluation.
        by_group: Keep pairs of one question together; otherwise every pair stands for itself.
        equal_groups: Weight each question equally within its step, rather than each pair.
        chunk_tokens: Distinct tokens that a micro-batch may have; larger questions are cut.
    """

    def __init__(
        self,
        pairs: Sequence[PairTokens],
        shape: Shape,
        *,
        seed: int | None,
        by_group: bool = True,
        equal_groups: bool = False,
        chunk_tokens: int | None = None,
    ) -> None:
        self._pairs = pairs
        self._shape = shape
        self._seed = seed
        self._equal_groups = equal_groups
        groups: dict[Hashable, list[int]] = {}
        for index, pair in enumerate(pairs):
            groups.setdefault(pair.group if by_group else index, []).append(index)
        # What a pair adds to those before it in its chunk. Chunks share next to nothing, so costs simply add up.
        self._costs = [0] * len(pairs)
        self._chunks: list[list[int]] = []
        for members in groups.values():
            for chunk, costs in _chunks(members, pairs, shape.global_batch, chunk_tokens):
                self._chunks.append(chunk)
                for index, cost in zip(chunk, costs, strict=True):
                    self._costs[index] = cost

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch; the last one may have fewer pairs."""
        return math.ceil(self._used / self._shape.global_batch)

    @property
    def _used(self) -> int:
        return len(self._pairs) - (len(self._pairs) % self._shape.micro_batches if self._shape.equal_pairs else 0)

    def steps(self, epoch: int) -> list[list[int]]:
        """Returns the pairs of each of the epoch's optimizer steps; the same for every world size."""
        order = np.arange(len(self._chunks))
        if self._seed is not None:
            np.random.default_rng([self._seed, epoch]).shuffle(order)
        pairs = [pair for chunk in order for pair in self._chunks[chunk]][: self._used]
        size = self._shape.global_batch
        return [pairs[start : start + size] for start in range(0, len(pairs), size)]

    def micro_batches(self, epoch: int) -> list[list[Weighted]]:
        """Returns the epoch's micro-batches, step by step, process by process within each accumulation step."""
        return [part for step in self.steps(epoch) for part in self._cut(step)]

    def largest(self, epoch: int) -> int:
        """Returns the distinct tokens of the epoch's largest micro-batch, of those that could be cut further."""
        return max((self._cost(part) for part in self.micro_batches(epoch) if len(part) > 1), default=0)

    def _cost(self, part: list[Weighted]) -> int:
        first, *others = (weighted.index for weighted in part)
        return _alone(self._pairs[first]) + sum(self._costs[index] for index in others)

    def _cut(self, step: list[int]) -> list[list[Weighted]]:
        parts = self._shape.micro_batches
        factors = self._factors(step)
        if len(step) < parts:
            cut = [[pair] for pair in step] + [[]] * (parts - len(step))
        else:
            costs = [self._costs[pair] if self._shape.by_tokens else 1 for pair in step]
            cut = [step[start:end] for start, end in pairwise(_even_edges(costs, parts))]
        return [[Weighted(pair, factors[pair]) for pair in part] or [Weighted(step[0], 0.0)] for part in cut]

    def _factors(self, step: list[int]) -> dict[int, float]:
        weights = dict.fromkeys(step, 1.0)
        if self._equal_groups:
            sizes: dict[Hashable, int] = {}
            for pair in step:
                sizes[self._pairs[pair].group] = sizes.get(self._pairs[pair].group, 0) + 1
            weights = {pair: 1.0 / sizes[self._pairs[pair].group] for pair in step}
        scale = self._shape.micro_batches / sum(weights.values())
        return {pair: weight * scale for pair, weight in weights.items()}


class MicroBatchSampler(Sampler[list[Weighted]]):
    """Hands out a plan's micro-batches, epoch by epoch; deal them to the processes in turn.

    Args:
        plan: The plan.
        batch_size: A nominal size, which Accelerate asks for.
    """

    def __init__(self, plan: PairPlan, batch_size: int = 1) -> None:
        self._plan = plan
        self._epoch = 0
        self.batch_size = batch_size
        self.drop_last = False

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch; the trainer calls this."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[list[Weighted]]:
        yield from self._plan.micro_batches(self._epoch)

    def __len__(self) -> int:
        return len(self._plan.micro_batches(self._epoch))


class PlannedRows(Dataset):
    """A data set's rows, asked for by their places in a plan.

    Args:
        rows: A map from an index to a row's columns.
    """

    def __init__(self, rows: Any) -> None:
        self._rows = rows

    def __getitem__(self, place: Weighted) -> dict[str, Any]:
        """Returns the row, with its weight."""
        return {**self._rows[place.index], "weight": place.weight}

    def __len__(self) -> int:
        """Returns the number of rows."""
        return len(self._rows)


def pair_tokens(rows: Any) -> list[PairTokens]:
    """Returns what the planner sees of a data set with the columns `prompt_ids`, `chosen_ids` and `rejected_ids`."""
    columns = (rows["prompt_ids"], rows["chosen_ids"], rows["rejected_ids"])
    return [
        PairTokens(prompt, chosen, rejected, tuple(prompt)) for prompt, chosen, rejected in zip(*columns, strict=True)
    ]


def accumulation_within(
    pairs: Sequence[PairTokens], shape: Shape, tokens: int, epochs: int, *, seed: int, by_group: bool = True
) -> int:
    """Returns the fewest micro-batches a step and process that keep each one within a token budget.

    A pair that is larger than the budget cannot be cut and travels alone.

    Args:
        pairs: The data set.
        shape: Global batch and world size; its accumulation is where the search begins.
        tokens: Distinct tokens that a micro-batch may have.
        epochs: Epochs that will be run, each of which is cut in its own way.
        seed: The order's seed.
        by_group: Whether pairs of one question stay together.
    """
    accumulation = shape.accumulation
    for epoch in range(epochs):
        while shape.world_size * accumulation < shape.global_batch:
            tried = Shape(shape.global_batch, shape.world_size, accumulation)
            plan = PairPlan(pairs, tried, seed=seed, by_group=by_group, chunk_tokens=tokens)
            if plan.largest(epoch) <= tokens:
                break
            accumulation += 1
    return accumulation


def _chunks(
    members: list[int], pairs: Sequence[PairTokens], most: int, tokens: int | None
) -> Iterator[tuple[list[int], list[int]]]:
    """Cuts one question's pairs into consecutive chunks, each with what its pairs add to the chunk's tokens.

    A chunk has at most `most` pairs and, if given, `tokens` distinct tokens.
    """
    chunk: list[int] = []
    costs: list[int] = []
    for index, cost in zip(members, _added_tokens([pairs[index] for index in members]), strict=True):
        if chunk and (len(chunk) == most or (tokens is not None and sum(costs) + cost > tokens)):
            yield chunk, costs
            chunk, costs = [], []
        costs.append(cost if chunk else _alone(pairs[index]))
        chunk.append(index)
    yield chunk, costs


def _added_tokens(pairs: Sequence[PairTokens]) -> list[int]:
    """Returns the distinct prefixes that each pair adds to those before it; together, the size of their forest."""
    forest = build_forest([sequence for pair in pairs for sequence in pair.sequences])
    seen = np.zeros(len(forest), bool)
    added = []
    for chosen, rejected in zip(forest.paths[::2], forest.paths[1::2], strict=True):
        nodes = np.union1d(chosen, rejected)
        added.append(int(np.count_nonzero(~seen[nodes])))
        seen[nodes] = True
    return added


def _alone(pair: PairTokens) -> int:
    """Returns the tokens of a pair that shares nothing with the one before it."""
    return len(pair.prompt) + len(pair.chosen) + len(pair.rejected)


def _even_edges(costs: list[int], parts: int) -> list[int]:
    """Returns the edges of `parts` consecutive runs of about equal cost, none of them empty."""
    running = np.array([0, *accumulate(costs)])
    edges = [0]
    for part in range(1, parts):
        ideal = running[-1] * part / parts
        nearest = int(np.abs(running - ideal).argmin())
        edges.append(min(max(nearest, edges[-1] + 1), len(costs) - (parts - part)))
    return [*edges, len(costs)]
