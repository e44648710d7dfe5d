"""Fetches on the login node what nodes without a network could not: models, adapters, judges."""

from __future__ import annotations

from pathlib import Path

from lora_dpo.model.location import find_file, local_copy, locate
from lora_dpo.recipe.schema import Recipe

_SMALL = ["*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken"]
_WEIGHTS = ("*.safetensors", "*.bin")


def hub_ids(recipe: Recipe) -> list[tuple[str, str | None]]:
    """Returns the Hub repositories of models that a recipe reads, each with its revision.

    Raises:
        UserError: Something that looks like a path or a package is not there.
    """
    named = [(recipe.model.name, recipe.model.revision)]
    named += [(place, None) for place in (recipe.adapter.init_from, *recipe.evaluation.judges) if place is not None]
    found = []
    for name, revision in named:
        if not Path(name).expanduser().exists() and locate(name).hub_id is not None:
            found.append((name, revision))
    return list(dict.fromkeys(found))


def stage_models(recipe: Recipe) -> list[tuple[str, Path]]:
    """Fetches what a recipe names by a Hub id into the cache, which the nodes share.

    What is there already is only checked.

    Returns:
        Each Hub id, with the folder that it is in.

    Raises:
        UserError: There is no such repository, this token may not read it, or the Hub cannot be reached.
    """
    staged = []
    for name, revision in hub_ids(recipe):
        code = ["*.py"] if recipe.model.trust_remote_code else []
        for weights in _WEIGHTS:
            folder = local_copy(name, revision, [*_SMALL, *code, weights])
            if any(folder.glob(weights)):
                break
        staged.append((name, folder))
    return staged


def check_models(recipe: Recipe) -> None:
    """Checks that the models are there and may be read, without fetching their weights.

    Raises:
        UserError: They are not.
    """
    for name, revision in hub_ids(recipe):
        find_file(name, "config.json", revision)
