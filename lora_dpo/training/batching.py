"""How optimizer steps are cut for this data set: by pairs, or into as few micro-batches as a token budget allows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from lora_dpo.data.chat import TokenisedExample, TokenisedPair
from lora_dpo.recipe.batch import BatchPlan, check_one_each, plan_batches, token_budget
from lora_dpo.recipe.schema import Recipe
from lora_dpo.tree.pairs import NOT_SCORED, PairTokens, example_tokens, pair_tokens
from lora_dpo.tree.sampler import Shape, accumulation_within

TOKENS = ("prompt_ids", "chosen_ids", "rejected_ids")


def token_columns(pairs: Sequence[TokenisedPair]) -> dict[str, list[list[int]]]:
    """Returns the pairs' tokens in the columns that TRL's collator and the planner read."""
    return {name: [getattr(pair, name) for pair in pairs] for name in TOKENS}


def example_columns(examples: Sequence[TokenisedExample]) -> dict[str, list[Any]]:
    """Returns the examples in the columns that TRL's collator and the planner read; only answers have labels."""
    return {
        "input_ids": [one.prompt_ids + one.answer_ids for one in examples],
        "labels": [[NOT_SCORED] * len(one.prompt_ids) + one.answer_ids for one in examples],
        "group": [one.group for one in examples],
    }


def plan_steps(
    recipe: Recipe, pairs: Sequence[TokenisedPair] | Sequence[TokenisedExample], world_size: int
) -> BatchPlan:
    """Returns how the recipe's global batch is cut.

    Args:
        recipe: The recipe.
        pairs: Training pairs, or examples of the SFT stage.
        world_size: Number of processes.

    Raises:
        UserError: The global batch cannot be shared by the processes, or does not divide by a given micro-batch.
    """
    train, tokens = recipe.train, token_budget(recipe)
    if tokens is None:
        return plan_batches(train.global_batch_size, train.micro_batch_size, world_size)
    size = train.global_batch_size
    check_one_each(recipe, world_size)
    steps = math.ceil(len(pairs) / size)
    epochs = math.ceil(train.epochs if train.max_steps is None else train.max_steps / steps)
    accumulation = accumulation_within(
        _planned(pairs),
        Shape(size, world_size, 1),
        tokens,
        epochs,
        seed=recipe.run.seed,
        by_group=train.group_by_prompt,
    )
    return BatchPlan(size, math.ceil(size / (accumulation * world_size)), accumulation, world_size, tokens)


def _planned(rows: Sequence[TokenisedPair] | Sequence[TokenisedExample]) -> list[PairTokens]:
    if rows and isinstance(rows[0], TokenisedExample):
        return example_tokens(example_columns(rows))
    return pair_tokens(token_columns(rows))
