"""What MODEL or RUN on the command line means for those who want to talk to it; nothing is loaded yet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lora_dpo.evaluation.subjects import Named, find, model_below, was_on_four_bits
from lora_dpo.model.base import resolve
from lora_dpo.model.record import read_record
from lora_dpo.recipe.loading import with_model_overrides
from lora_dpo.recipe.schema import ModelSection, Recipe

_FREE = ("model.revision", "model.dtype", "model.attention", "model.template", "model.trust_remote_code")


@dataclass(frozen=True, slots=True)
class Found:
    """What is to be talked to.

    Attributes:
        name: What the user calls it.
        place: The adapter or the whole model: local folder, Hub id, or whatever else `model.name` may be.
        model: The model that is loaded: an adapter's base, or the whole model itself.
        is_adapter: Whether `place` is an adapter.
        four_bit: Whether the base is taken to 4 bits, as it was for the training.
        base: The model before the training; None where nothing says which one it was.
    """

    name: str
    place: str
    model: ModelSection
    is_adapter: bool
    four_bit: bool
    base: ModelSection | None


def find_model(word: str, *, base: str | None = None, overrides: Sequence[str] = ()) -> Found:
    """Finds out what a word stands for.

    Args:
        word: Run folder, adapter, checkpoint or model folder, Hub id, GGUF file, or `package:NAME/FILE`.
        base: Where an adapter's base is, or which model a whole model is compared with; None is what they say.
        overrides: `model.KEY=VALUE` words.

    Raises:
        UserError: It stands for nothing, its base is not there, or an override is wrong.
    """
    named = find(word)
    recipe = None if named.run is None else named.run.load_recipe()
    is_adapter = named.kind == "adapter" or (named.kind == "run" and recipe is not None and not _is_full(recipe))
    before = model_below(named, base) if is_adapter or recipe is not None else _base_of_whole(named, base)
    own = before if is_adapter and before is not None else _own_section(named, recipe)
    model = with_model_overrides(own, overrides, _FREE)
    return Found(
        name=word,
        place=named.place,
        model=model,
        is_adapter=is_adapter,
        four_bit=is_adapter and was_on_four_bits(named),
        base=model if is_adapter else before,
    )


def _is_full(recipe: Recipe) -> bool:
    return recipe.adapter.method == "full"


def _own_section(named: Named, recipe: Recipe | None) -> ModelSection:
    """Returns how a whole model is loaded; a run's own one as its base was, for the template's sake."""
    if recipe is None:
        return ModelSection(name=named.place)
    return recipe.model.model_copy(update={"name": named.place, "revision": None})


def _base_of_whole(named: Named, base: str | None) -> ModelSection | None:
    """Returns what the user or a merged model says that its base is."""
    if base is not None:
        return ModelSection(name=base)
    record = read_record(resolve(ModelSection(name=named.place)))
    return None if record is None else ModelSection(name=record["model"]["name"], revision=record["model"]["revision"])
