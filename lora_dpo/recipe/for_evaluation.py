"""The recipe of an evaluation: a run's own, or defaults for what was trained elsewhere; and what of it may be set."""

from __future__ import annotations

import json
from collections.abc import Sequence

from lora_dpo.errors import UserError
from lora_dpo.recipe.loading import with_overrides
from lora_dpo.recipe.schema import AdapterSection, DataSection, ModelSection, Recipe, RunSection
from lora_dpo.recipe.yaml_source import parse_value

_MEASURES = ("evaluation",)
_FOLDS = "evaluation.folds"  # of trainings
_READING = (
    "data.columns", "data.pairs", "data.min_margin", "data.limit", "data.over_length", "data.on_bad_row",
    "dpo.max_length",
)  # fmt: skip
_LOADING = (
    "model.revision", "model.dtype", "model.attention", "model.template", "model.trust_remote_code",
    "dpo.beta",
)  # fmt: skip


def recipe_of_run(recipe: Recipe, data: str | None, overrides: Sequence[str]) -> Recipe:
    """Returns the recipe by which a run is measured.

    Args:
        recipe: What the run was trained by; model, template and lengths stay as they were.
        data: A test set, as `data.path` is written in a recipe; None is the run's own.
        overrides: `section.key=value` words.

    Raises:
        UserError: An override is wrong, or would measure something else than the run.
    """
    return _settled(recipe, data, overrides, _MEASURES, "a run, which is measured as it was trained")


def recipe_of_stranger(
    name: str, model: ModelSection, method: str, data: str | None, overrides: Sequence[str]
) -> Recipe:
    """Returns a recipe with the defaults by which an adapter or a model from elsewhere is measured.

    Args:
        name: What reports call it.
        model: Its base.
        method: `lora` or `qlora` for an adapter, `full` for a model.
        data: A test set, as `data.path` is written in a recipe; None is none.
        overrides: `section.key=value` words.

    Raises:
        UserError: An override is wrong, or has no meaning where nothing is trained.
    """
    recipe = Recipe(model=model, adapter=AdapterSection(method=method), run=RunSection(name=name))
    return _settled(recipe, data, overrides, (*_MEASURES, *_LOADING), "what was trained elsewhere")


def _settled(recipe: Recipe, data: str | None, overrides: Sequence[str], free: Sequence[str], of_what: str) -> Recipe:
    if data is not None:
        # How the run's own file was read says nothing of another file.
        recipe = with_overrides(recipe.model_copy(update={"data": DataSection()}), [f"data.path={_sources(data)}"])
        free = (*free, *_READING)
    settled = with_overrides(recipe, overrides)
    for key in (override.partition("=")[0] for override in overrides):
        if key == _FOLDS or not any(key == known or key.startswith(f"{known}.") for known in free):
            named = ", ".join(f"{known}.*" if "." not in known else known for known in free)
            how = " (it says how a test set is read, and --data names none)" if key.startswith(_READING) else ""
            raise UserError(
                f"{key} cannot be set for an evaluation of {of_what}{how}.", fix=f"What can be set: {named}."
            )
    return settled


def _sources(data: str) -> str:
    """Returns the sources that `--data` names, all of them for testing only, as the value of an override."""
    entries = parse_value(data, "--data") if data.startswith(("{", "[")) else data
    listed = entries if isinstance(entries, list) else [entries]
    return json.dumps([{**(entry if isinstance(entry, dict) else {"path": entry}), "use": "test"} for entry in listed])
