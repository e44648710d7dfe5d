"""Small recipes, pairs and trainings, for the tests that run a real one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lora_dpo.data.chat import TokenisedPair, TurnEncoder
from lora_dpo.data.example import Example
from lora_dpo.data.pair import Pair, group_of, user
from lora_dpo.model.adapter import continue_adapter, lora_config
from lora_dpo.model.base import load_model, load_tokenizer
from lora_dpo.recipe.schema import Recipe
from lora_dpo.training.arguments import training_arguments
from lora_dpo.training.batching import plan_steps
from lora_dpo.training.reference import fill_reference
from lora_dpo.training.supervised import SupervisedTrainer
from lora_dpo.training.trainer import PreferenceTrainer

_FACTS = (
    ("Why is the sky blue?", "Air scatters blue light most.", "It mirrors the sea, and so it has the sea's colour."),
    ("Do bats see?", "Yes, all bats can see, and some see very well.", "No."),
    ("What do bulls hate?", "Movement.", "The colour red."),
    ("Is glass a slow liquid?", "No, it is a solid.", "Yes, and old windows are thicker at the bottom."),
)


def preferences(count: int = 4, per_question: int = 1) -> list[Pair]:
    """Returns pairs of short answers of different lengths."""
    pairs = []
    for place in range(count):
        number, turn = divmod(place, per_question)
        question, chosen, rejected = _FACTS[number % len(_FACTS)]
        rejected += " So I was told." * turn
        turns = user(question if number < len(_FACTS) else f"{question} (asked again, {number})")
        pairs.append(Pair(turns, chosen, rejected, group_of(turns), origin=f"small.py, pair {place}"))
    return pairs


def small_recipe(model: Path | str, folder: Path, **sections: dict[str, Any]) -> Recipe:
    """Returns a recipe for one process and a few steps; `sections` replace or add keys."""
    values: dict[str, dict[str, Any]] = {
        "model": {"name": str(model)},
        "adapter": {"r": 4, "alpha": 8},
        "dpo": {"max_length": 256},
        "train": {
            "strategy": "single",
            "global_batch_size": 4,
            "learning_rate": 1e-3,
            "max_steps": 2,
            "keep_checkpoints": 0,
        },
        "evaluation": {"samples": 2, "max_new_tokens": 4},
        "run": {"name": "small", "folder": str(folder)},
        "sft": {"max_steps": 2, "learning_rate": 1e-3, "max_length": 256},
    }
    for section, keys in sections.items():
        values[section] = {**values.get(section, {}), **keys}
    return Recipe.model_validate(values)


def answers(count: int = 4) -> list[Example]:
    """Returns the better answers of `preferences`."""
    return [Example(pair.prompt, pair.chosen, pair.group, pair.origin) for pair in preferences(count)]


def small_supervised(
    recipe: Recipe, *, count: int = 4, validation: int = 0, world_size: int = 1, callbacks: tuple = ()
) -> SupervisedTrainer:
    """Returns the trainer of a recipe's SFT stage on `answers`, as the pipeline makes it."""
    tokenizer = load_tokenizer(recipe.model)
    encoder = TurnEncoder(tokenizer, recipe.model.template)
    examples, held_out = (list(encoder.encode_examples(answers(size))) for size in (count, validation))
    plan = plan_steps(recipe, examples, world_size)
    output = Path(recipe.run.folder) / recipe.run.name / "checkpoints"
    arguments = training_arguments(recipe, plan, len(examples), len(held_out), output)
    model = load_model(recipe.model, four_bit=recipe.adapter.method == "qlora")
    config = lora_config(recipe.adapter, model) if recipe.adapter.method != "full" else None
    return SupervisedTrainer(
        recipe, plan, model, arguments, examples, held_out, tokenizer, config, callbacks=list(callbacks)
    )


def tokenised(recipe: Recipe, count: int = 4, per_question: int = 1) -> list[TokenisedPair]:
    """Returns `preferences` as the recipe's model reads them."""
    return list(
        TurnEncoder(load_tokenizer(recipe.model), recipe.model.template).encode(preferences(count, per_question))
    )


def small_trainer(
    recipe: Recipe,
    *,
    count: int = 4,
    per_question: int = 1,
    callbacks: tuple = (),
    validation: int = 0,
    world_size: int = 1,
    before_loading: Callable[[], None] | None = None,
    reference: bool = True,
) -> PreferenceTrainer:
    """Returns a trainer of the recipe on `preferences`, as the pipeline makes it; its `reference` can be left out."""
    pairs = tokenised(recipe, count, per_question)
    held_out = tokenised(recipe, validation, per_question) if validation else []
    plan = plan_steps(recipe, pairs, world_size)
    output = Path(recipe.run.folder) / recipe.run.name / "checkpoints"
    arguments = training_arguments(recipe, plan, len(pairs), len(held_out), output)
    if before_loading is not None:
        before_loading()
    model = load_model(recipe.model, four_bit=recipe.adapter.method == "qlora")
    config = None
    if recipe.adapter.init_from is not None:
        model = continue_adapter(recipe.adapter, model)
    elif recipe.adapter.method != "full":
        config = lora_config(recipe.adapter, model)
    tokenizer = load_tokenizer(recipe.model)
    trainer = PreferenceTrainer(
        recipe, plan, model, arguments, pairs, held_out, tokenizer, config, callbacks=list(callbacks)
    )
    if reference and recipe.dpo.reference == "cached":
        fill_reference(trainer, recipe)
    return trainer
