"""How a global batch is cut into micro-batches over processes."""

from __future__ import annotations

from dataclasses import dataclass

from lora_dpo.errors import UserError
from lora_dpo.recipe.schema import LOSSES_WITHOUT_A_MEAN_OVER_PAIRS, Recipe

_DEFAULT_TOKENS = 4096
_LARGEST_DEFAULT_MICRO_BATCH = 8


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """How an optimizer step of `global_batch` pairs, or examples of the SFT stage, is cut.

    Attributes:
        global_batch: Pairs a step, over all processes.
        micro_batch: Pairs a forward pass and process: exactly, or the most that come on average where steps are cut by
            tokens.
        accumulation: Forward passes a step and process.
        world_size: Processes.
        tokens: Distinct tokens a forward pass should have; None where steps are cut by pairs.
    """

    global_batch: int
    micro_batch: int
    accumulation: int
    world_size: int
    tokens: int | None = None


def token_budget(recipe: Recipe) -> int | None:
    """Returns the distinct tokens that a micro-batch should have, or None where steps are cut by pairs."""
    train = recipe.train
    by_pairs = (
        train.micro_batch_size is not None
        or train.trees == "off"
        or recipe.adapter.dropout > 0
        or (recipe.run.stage == "dpo" and set(recipe.dpo.loss) & LOSSES_WITHOUT_A_MEAN_OVER_PAIRS)
    )
    return train.tokens_per_micro_batch or (None if by_pairs else _DEFAULT_TOKENS)


def plan_batches(global_batch: int, micro_batch: int | None, world_size: int) -> BatchPlan:
    """Derives the gradient accumulation from the global batch and the number of processes.

    Args:
        global_batch: Pairs an optimizer step over all processes.
        micro_batch: Pairs a forward pass and process; None takes the largest up to 8 that divides.
        world_size: Number of processes.

    Returns:
        The plan, exact to the pair.

    Raises:
        UserError: The numbers do not divide; the nearest ones that do are named.
    """
    if global_batch % world_size:
        raise UserError(
            f"train.global_batch_size {global_batch} cannot be shared equally by {processes(world_size)}.",
            fix=f"Take train.global_batch_size {_nearest_multiples(global_batch, world_size)}.",
        )
    local = global_batch // world_size
    if micro_batch is None:
        micro_batch = max(size for size in range(1, _LARGEST_DEFAULT_MICRO_BATCH + 1) if local % size == 0)
    if local % micro_batch:
        divisors = [size for size in range(1, local + 1) if local % size == 0]
        nearest = sorted(sorted(divisors, key=lambda size: abs(size - micro_batch))[:2])
        raise UserError(
            f"train.micro_batch_size {micro_batch} x {processes(world_size)} does not divide "
            f"train.global_batch_size {global_batch}.",
            fix=f"Take train.micro_batch_size {' or '.join(map(str, nearest))}, "
            f"or train.global_batch_size {_nearest_multiples(global_batch, micro_batch * world_size)}.",
        )
    return BatchPlan(global_batch, micro_batch, local // micro_batch, world_size)


def check_one_each(recipe: Recipe, world_size: int) -> None:
    """Checks that a step has something for each process, where it is cut by tokens.

    Raises:
        UserError: It has not.
    """
    if (size := recipe.train.global_batch_size) < world_size:
        noun = "example" if recipe.run.stage == "sft" else "pair"
        raise UserError(
            f"train.global_batch_size {size} is less than one {noun} for each of {world_size} processes.",
            fix=f"Take train.global_batch_size {world_size} or more.",
        )


def processes(count: int) -> str:
    """Returns `1 process`, `2 processes`."""
    return f"{count} process{'es' if count > 1 else ''}"


def _nearest_multiples(number: int, of: int) -> str:
    below, above = number // of * of, -(-number // of) * of
    return f"{below} or {above}" if below else str(above)
