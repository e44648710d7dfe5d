from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from lora_dpo.data.chat import TokenisedPair
from lora_dpo.errors import UserError
from lora_dpo.recipe.batch import BatchPlan
from lora_dpo.recipe.schema import Recipe
from lora_dpo.training.batching import plan_steps
from lora_dpo.tree.pairs import PairTokens
from lora_dpo.tree.sampler import PairPlan, Shape
from tests.small import preferences, small_recipe, small_trainer


def recipe_with(train: dict[str, Any], **sections: dict[str, Any]) -> Recipe:
    return Recipe.model_validate({"model": {"name": "m"}, "run": {"name": "r"}, "train": train, **sections})


def pairs(*tokens: int) -> list[TokenisedPair]:
    """Returns pairs of so many distinct tokens; each has a prompt of its own."""
    (written,) = preferences(1)
    return [TokenisedPair(written, [number] * 2, [100] * (count - 3), [200]) for number, count in enumerate(tokens)]


@pytest.mark.parametrize(
    ("train", "world_size", "plan"),
    [
        # 8 pairs of 10 tokens each; the whole step has 80.
        ({"tokens_per_micro_batch": 80}, 1, BatchPlan(8, 8, 1, 1, 80)),
        ({"tokens_per_micro_batch": 79}, 1, BatchPlan(8, 4, 2, 1, 79)),
        ({"tokens_per_micro_batch": 39}, 1, BatchPlan(8, 3, 3, 1, 39)),
        ({"tokens_per_micro_batch": 39}, 2, BatchPlan(8, 2, 2, 2, 39)),
        ({"tokens_per_micro_batch": 9}, 2, BatchPlan(8, 1, 4, 2, 9)),
        ({"tokens_per_micro_batch": 9}, 3, BatchPlan(8, 1, 3, 3, 9)),  # 3 * 3 > 8: one place stays empty
        ({}, 1, BatchPlan(8, 8, 1, 1, 4096)),
        ({"trees": "off"}, 2, BatchPlan(8, 4, 1, 2)),
        ({"micro_batch_size": 2}, 2, BatchPlan(8, 2, 2, 2)),
    ],
)
def test_plans(train: dict[str, Any], world_size: int, plan: BatchPlan) -> None:
    assert plan_steps(recipe_with({"global_batch_size": 8, **train}), pairs(*[10] * 8), world_size) == plan


def test_losses_that_are_no_mean_over_pairs_are_cut_by_pairs() -> None:
    plan = plan_steps(recipe_with({"global_batch_size": 12}, dpo={"loss": "aot"}), pairs(*[10] * 12), 2)
    assert plan == BatchPlan(12, 6, 1, 2)


@pytest.mark.parametrize("group_by_prompt", [True, False])
def test_prompts_that_travel_together_need_fewer_micro_batches(group_by_prompt: bool) -> None:
    # Two prompts of 50 with four pairs of 1 + 1 tokens each: 50 + 4 * 2 = 58 a prompt, or 52 a pair.
    (written,) = preferences(1)
    mixed = [TokenisedPair(written, [n % 2] * 50, [100 + n], [200 + n]) for n in range(8)]
    train = {"global_batch_size": 8, "tokens_per_micro_batch": 58, "group_by_prompt": group_by_prompt}
    assert plan_steps(recipe_with(train), mixed, 1).accumulation == (2 if group_by_prompt else 8)


UNEVEN = (20, 30, 30, 20)


def accumulations(train: dict[str, Any]) -> list[int]:
    """Returns the accumulation for each of ten seeds."""
    recipes = (
        recipe_with({"global_batch_size": 4, "tokens_per_micro_batch": 50, **train}, run={"name": "r", "seed": seed})
        for seed in range(10)
    )
    return [plan_steps(recipe, pairs(*UNEVEN), 1).accumulation for recipe in recipes]


def largest(epochs: range, seed: int, accumulation: int) -> int:
    planned = [PairTokens(p.prompt_ids, p.chosen_ids, p.rejected_ids, tuple(p.prompt_ids)) for p in pairs(*UNEVEN)]
    plan = PairPlan(planned, Shape(4, 1, accumulation), seed=seed, chunk_tokens=50)
    return max(plan.largest(epoch) for epoch in epochs)


@pytest.mark.parametrize(
    ("train", "epochs"),
    [({"epochs": 1}, 1), ({"epochs": 3}, 3), ({"epochs": 2.5}, 3), ({"max_steps": 3}, 3), ({"max_steps": 1}, 1)],
)
def test_every_epoch_that_is_run_counts_and_no_other(train: dict[str, Any], epochs: int) -> None:
    # In some orders two parts do, in others three; one step is an epoch.
    found = accumulations(train)
    for seed, accumulation in enumerate(found):
        assert largest(range(epochs), seed, accumulation) <= 50
        assert largest(range(epochs), seed, accumulation - 1) > 50
    if epochs == 1:
        assert set(found) == {2, 3}


def test_fewer_pairs_than_processes_are_refused() -> None:
    with pytest.raises(UserError) as caught:
        plan_steps(recipe_with({"global_batch_size": 3}), pairs(10, 10, 10), 4)
    assert str(caught.value) == (
        "train.global_batch_size 3 is less than one pair for each of 4 processes.\n"
        "Take train.global_batch_size 4 or more."
    )


@pytest.mark.parametrize("group_by_prompt", [True, False])
def test_the_trainer_keeps_to_the_budget(tiny_models, tmp_path: Path, group_by_prompt: bool) -> None:
    train = {
        "global_batch_size": 8, "tokens_per_micro_batch": 150, "max_steps": 6, "group_by_prompt": group_by_prompt,
    }  # fmt: skip
    trainer = small_trainer(small_recipe(tiny_models("llama"), tmp_path, train=train), count=16)
    accumulation = trainer.args.gradient_accumulation_steps
    assert 1 < accumulation < 8
    plan = trainer.train_plan()
    assert all(plan.largest(epoch) <= 150 for epoch in range(3))
    lone = plan.with_accumulation(accumulation - 1)
    assert any(lone.largest(epoch) > 150 for epoch in range(3))
    steps = groupby(enumerate(plan.micro_batches(0)), key=lambda entry: entry[0] // accumulation)
    assert [sum(len(part) for _, part in parts) for _, parts in steps] == [8, 8]
