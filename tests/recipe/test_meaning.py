from __future__ import annotations

from lora_dpo.recipe.loading import all_keys
from lora_dpo.recipe.meaning import MAY_CHANGE, changed_meaning, meaning, meaning_hash
from lora_dpo.recipe.schema import Recipe


def recipe(**sections: dict) -> Recipe:
    return Recipe.model_validate({"model": {"name": "m"}, "run": {"name": "r"}, **sections})


def test_every_key_that_may_change_is_a_key() -> None:
    known = all_keys()
    for name in MAY_CHANGE:
        name = name.removesuffix(".deepspeed")  # an argument of TRL's, of which the recipe knows none by name
        assert name in known or any(key.startswith(f"{name}.") for key in known), name


def test_how_a_run_is_carried_out_does_not_change_its_meaning() -> None:
    other = recipe(
        train={
            "strategy": "zero3",
            "gradient_checkpointing": True,
            "save_steps": 7,
            "keep_checkpoints": 9,
            "max_hours": 3,
        },
        evaluation={"samples": 0},
        slurm={"nodes": 4},
        run={"name": "r", "folder": "elsewhere", "resume": "never"},
    )
    assert changed_meaning(recipe(), other) == []
    assert meaning_hash(recipe()) == meaning_hash(other)


def test_each_key_that_decides_the_model_is_named_with_both_values() -> None:
    other = recipe(
        dpo={"beta": 0.2},
        train={"global_batch_size": 8, "trl": {"adam_beta2": 0.95}},
        data={"path": ["a.jsonl", {"path": "b.jsonl", "weight": 2}]},
        run={"name": "r", "seed": 3},
    )
    assert changed_meaning(recipe(), other) == [
        'data.path: "bundled/misconceptions" -> ["a.jsonl", {"path": "b.jsonl", "subset": null, "hub_split": null, '
        '"weight": 2.0, "use": "auto"}]',
        "dpo.beta: 0.1 -> 0.2",
        "train.global_batch_size: 16 -> 8",
        "run.seed: 0 -> 3",
        "train.trl.adam_beta2: null -> 0.95",
    ]
    assert meaning_hash(recipe()) != meaning_hash(other)


def test_large_questions_are_cut_by_the_token_budget() -> None:
    """Another cut is another order of the pairs, but what pairs are cut by only where steps are."""
    key = "train.tokens_per_micro_batch"
    assert changed_meaning(recipe(), recipe(train={"tokens_per_micro_batch": 2048})) == [f"{key}: 4096 -> 2048"]
    assert changed_meaning(recipe(), recipe(train={"micro_batch_size": 2})) == [f"{key}: 4096 -> null"]
    by_pairs = recipe(train={"micro_batch_size": 2, "trees": "off"})
    assert changed_meaning(by_pairs, recipe(train={"micro_batch_size": 4})) == []


def test_a_renamed_run_is_the_same_training_under_another_name() -> None:
    assert "run.name" not in meaning(recipe())
