"""Which pairs travel together: whole questions in one micro-batch, and the same number of micro-batches everywhere."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from operator import itemgetter
from typing import Any

import numpy as np
from torch.utils.data import Dataset, Sampler

from lora_dpo.tree.chunks import cut_question
from lora_dpo.tree.line import Line
from lora_dpo.tree.pairs import PairTokens


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
        by_tokens: Cut so that the largest micro-batch has as few distinct tokens as can be; otherwise where pairs are
            equal.
        equal_pairs: Every micro-batch has exactly equally many pairs, whatever `by_tokens` says; what is left over at
            an epoch's end is left out. For losses that are no mean over pairs.

    Raises:
        ValueError: With `equal_pairs`, the global batch does not divide by the micro-batches.
    """

    global_batch: int
    world_size: int
    accumulation: int
    by_tokens: bool = True
    equal_pairs: bool = False

    def __post_init__(self) -> None:
        """Checks that equal micro-batches are possible."""
        if self.equal_pairs and self.global_batch % self.micro_batches:
            raise ValueError(
                f"{self.global_batch} pairs a step cannot be {self.micro_batches} micro-batches of equally many"
            )

    @property
    def micro_batches(self) -> int:
        """Micro-batches a step, over all processes."""
        return self.world_size * self.accumulation


class PairPlan:
    """Plans every epoch's micro-batches.

    Steps do not depend on the number of processes: they are filled with questions in a seeded order, and a question
    that is larger than a step, or than a micro-batch may be, is cut into consecutive chunks. Only then is each step
    cut into `Shape.micro_batches` consecutive parts, each of at least one pair; where a step has fewer pairs, a pair of
    weight 0 fills the place, so that every process makes the same number of calls.

    The weights make the sum over all micro-batches the exact weighted mean over the step's pairs, whatever the cut: a
    trainer divides by the accumulation and the processes, so each weight carries both as a factor.

    Args:
        pairs: The data set.
        shape: How a step is cut.
        seed: Of the order; None takes the questions in the order of their first pairs, as for an evaluation.
        by_group: Keep pairs of one question next to each other; otherwise every pair stands for itself.
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
        self._chunks = [
            chunk
            for members in groups.values()
            for chunk in cut_question(members, pairs, shape.global_batch, chunk_tokens)
        ]
        self._places = {  # of each pair, its chunk and where it is in it
            pair: (number, place) for number, chunk in enumerate(self._chunks) for place, pair in enumerate(chunk.pairs)
        }

    def with_accumulation(self, accumulation: int) -> PairPlan:
        """Returns the same plan with its steps cut into another number of micro-batches."""
        plan = copy(self)
        plan._shape = replace(self._shape, accumulation=accumulation)
        return plan

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch; the last one may have fewer pairs."""
        return math.ceil(self._used / self._shape.global_batch)

    @property
    def _used(self) -> int:
        return len(self._pairs) - (len(self._pairs) % self._shape.micro_batches if self._shape.equal_pairs else 0)

    def steps(self, epoch: int) -> list[list[int]]:
        """Returns the pairs of each of the epoch's optimizer steps.

        They are the same for every world size and accumulation, and hold every pair once; but with `Shape.equal_pairs`
        the last pairs of the epoch's order, fewer than a step has micro-batches, are left out.
        """
        order = np.arange(len(self._chunks))
        if self._seed is not None:
            np.random.default_rng([self._seed, epoch]).shuffle(order)
        pairs = [pair for chunk in order for pair in self._chunks[chunk].pairs][: self._used]
        size = self._shape.global_batch
        return [pairs[start : start + size] for start in range(0, len(pairs), size)]

    def micro_batches(self, epoch: int) -> list[list[Weighted]]:
        """Returns the epoch's micro-batches, step by step, process by process within each accumulation step."""
        return [part for step in self.steps(epoch) for part in self._cut(step)]

    def micro_batch(self, step: int, place: int, rank: int) -> list[Weighted]:
        """Returns one micro-batch of one process.

        Args:
            step: Optimizer step, counted from 0 over all epochs.
            place: Which of the process's micro-batches in this step.
            rank: The process.
        """
        epoch, inside = divmod(step, self.steps_per_epoch)
        before = inside * self._shape.micro_batches + place * self._shape.world_size
        return self.micro_batches(epoch)[before + rank]

    @property
    def micro_batches_per_epoch(self) -> int:
        """Micro-batches of an epoch, over all processes."""
        return self.steps_per_epoch * self._shape.micro_batches

    def largest(self, epoch: int) -> int:
        """Returns the distinct tokens of the epoch's largest micro-batch, of those that could be cut further."""
        return max(map(self._largest, self.steps(epoch)), default=0)

    def within(self, tokens: int, epochs: int) -> bool:
        """Returns whether no micro-batch of these epochs has more tokens and could be cut further."""
        return all(self._largest(step) <= tokens for epoch in range(epochs) for step in self.steps(epoch))

    def _largest(self, step: list[int]) -> int:
        line = self._line(step)
        runs = pairwise(self._edges(step, line))
        return max((line.tokens(start, end) for start, end in runs if end - start > 1), default=0)

    def _cut(self, step: list[int]) -> list[list[Weighted]]:
        factors = self._factors(step)
        places = [Weighted(pair, factors[pair]) for pair in step]
        cut = [places[start:end] for start, end in pairwise(self._edges(step))]
        return cut + [[Weighted(step[0], 0.0)]] * (self._shape.micro_batches - len(cut))

    def _edges(self, step: list[int], line: Line | None = None) -> list[int]:
        """Returns where a step's micro-batches begin and end; one pair each, where there are too few."""
        parts = min(self._shape.micro_batches, len(step))
        if self._shape.by_tokens and not self._shape.equal_pairs:
            return (line or self._line(step)).cut(parts)
        return [len(step) * part // parts for part in range(parts + 1)]

    def _line(self, step: list[int]) -> Line:
        chunks = []
        for number, pairs in groupby(map(self._places.__getitem__, step), key=itemgetter(0)):
            _, places = zip(*pairs, strict=True)
            inside = slice(places[0], places[-1] + 1)  # a step may end inside a chunk
            chunks.append(self._chunks[number].tokens[inside, inside])
        return Line(chunks)

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
    """

    batch_size = None  # of any size: given a number, Accelerate drops the rounds whose last batch has another
    drop_last = False

    def __init__(self, plan: PairPlan) -> None:
        self.plan = plan
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch; the trainer calls this."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[list[Weighted]]:
        yield from self.plan.micro_batches(self._epoch)

    def __len__(self) -> int:
        return self.plan.micro_batches_per_epoch


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


def accumulation_within(
    pairs: Sequence[PairTokens], shape: Shape, tokens: int, epochs: int, *, seed: int, by_group: bool = True
) -> int:
    """Returns the fewest micro-batches a step and process that keep each one of every epoch within a token budget.

    A pair that is larger than the budget cannot be cut and travels alone. Cut by tokens, every budget can be kept;
    cut by pairs, one that no number of micro-batches keeps gives single pairs.

    Args:
        pairs: The data set.
        shape: How a step is cut; its accumulation is where the search begins.
        tokens: Distinct tokens that a micro-batch may have.
        epochs: Epochs that will be run, each of which is cut in its own way.
        seed: The order's seed.
        by_group: Whether pairs of one question stay together.
    """
    plan = PairPlan(pairs, shape, seed=seed, by_group=by_group, chunk_tokens=tokens)
    most = math.ceil(shape.global_batch / shape.world_size)
    tried = [n for n in range(shape.accumulation, most) if not shape.equal_pairs or most % n == 0]
    for accumulation in tried:
        if plan.with_accumulation(accumulation).within(tokens, epochs):
            return accumulation
    return max(shape.accumulation, most)
