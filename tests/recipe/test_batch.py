from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_dpo.errors import UserError
from lora_dpo.recipe.batch import BatchPlan, plan_batches, token_budget
from lora_dpo.recipe.schema import Recipe

sizes = st.integers(min_value=1, max_value=512)
worlds = st.integers(min_value=1, max_value=64)


@given(sizes, worlds)
def test_a_step_is_exactly_the_global_batch(per_process: int, world: int) -> None:
    plan = plan_batches(per_process * world, None, world)
    assert plan.micro_batch * plan.accumulation * plan.world_size == plan.global_batch == per_process * world
    assert plan.world_size == world
    assert plan.micro_batch <= 8
    larger = [size for size in range(plan.micro_batch + 1, 9) if per_process % size == 0]
    assert larger == []


@given(sizes, st.one_of(st.none(), sizes), worlds)
def test_every_plan_is_exact_and_every_error_names_numbers_that_work(
    global_batch: int, micro: int | None, world: int
) -> None:
    try:
        plan = plan_batches(global_batch, micro, world)
    except UserError as error:
        check_advice(error, global_batch, micro, world)
    else:
        assert plan.micro_batch * plan.accumulation * world == global_batch
        assert micro in (None, plan.micro_batch)


def check_advice(error: UserError, global_batch: int, micro: int | None, world: int) -> None:
    micro_part, _, global_part = error.fix.partition("train.global_batch_size ")
    assert global_part
    for size in map(int, re.findall(r"\d+", global_part)):
        if global_batch % world:
            assert size % world == 0
        else:
            assert plan_batches(size, micro, world).global_batch == size
    for size in map(int, re.findall(r"\d+", micro_part)):
        assert plan_batches(global_batch, size, world).micro_batch == size


@pytest.mark.parametrize(
    ("arguments", "plan"),
    [
        ((64, None, 4), BatchPlan(64, 8, 2, 4)),
        ((16, None, 1), BatchPlan(16, 8, 2, 1)),
        ((6, None, 1), BatchPlan(6, 6, 1, 1)),
        ((11, None, 1), BatchPlan(11, 1, 11, 1)),
        ((64, 16, 4), BatchPlan(64, 16, 1, 4)),
        ((4, None, 4), BatchPlan(4, 1, 1, 4)),
    ],
)
def test_plans(arguments: tuple[int, int | None, int], plan: BatchPlan) -> None:
    assert plan_batches(*arguments) == plan


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            (10, None, 4),
            "train.global_batch_size 10 cannot be shared equally by 4 processes.\n"
            "Take train.global_batch_size 8 or 12.",
        ),
        (
            (2, None, 4),
            "train.global_batch_size 2 cannot be shared equally by 4 processes.\nTake train.global_batch_size 4.",
        ),
        (
            (64, 6, 4),
            "train.micro_batch_size 6 x 4 processes does not divide train.global_batch_size 64.\n"
            "Take train.micro_batch_size 4 or 8, or train.global_batch_size 48 or 72.",
        ),
        (
            (16, 32, 1),
            "train.micro_batch_size 32 x 1 process does not divide train.global_batch_size 16.\n"
            "Take train.micro_batch_size 8 or 16, or train.global_batch_size 32.",
        ),
    ],
)
def test_errors_name_the_nearest_numbers_that_divide(arguments: tuple[int, int | None, int], message: str) -> None:
    with pytest.raises(UserError) as caught:
        plan_batches(*arguments)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("sections", "tokens"),
    [
        ({}, 4096),
        ({"train": {"trees": "on"}}, 4096),
        ({"train": {"tokens_per_micro_batch": 900}}, 900),
        ({"train": {"micro_batch_size": 2}}, None),
        ({"train": {"trees": "off"}}, None),
        ({"train": {"trees": "off", "tokens_per_micro_batch": 900}}, 900),
        ({"adapter": {"dropout": 0.1}}, None),
        ({"adapter": {"dropout": 0.1}, "train": {"tokens_per_micro_batch": 900}}, 900),
        ({"dpo": {"loss": ["sigmoid", "sft"]}}, None),
        ({"dpo": {"loss": "aot"}}, None),
        ({"dpo": {"loss": ["sigmoid", "ipo"]}}, 4096),
    ],
)
def test_tokens_are_the_measure_where_trees_can_be(sections: dict[str, Any], tokens: int | None) -> None:
    assert token_budget(Recipe.model_validate({"model": {"name": "m"}, "run": {"name": "r"}, **sections})) == tokens
