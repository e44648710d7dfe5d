"""Sessions: a recipe that is trained again whenever there is more data, each time from the adapter of the last time.

`adapter.init_from=auto` stands for the last finished run of the recipe's name. The sessions of NAME are the runs NAME,
NAME-2, NAME-3 and so on, so that none replaces another.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from lora_dpo.errors import UserError
from lora_dpo.recipe.run_folder import RunFolder
from lora_dpo.recipe.schema import DataSection, Recipe

AUTO = "auto"


def session_recipe(recipe: Recipe) -> Recipe:
    """Returns what a recipe with `adapter.init_from=auto` stands for now: that of its next session.

    The first session begins as a recipe without `init_from` does. A later one begins with the adapter of the one
    before, and leaves each question on the side of the split where it was. An unfinished session goes on, and where
    neither recipe nor data have changed since the last one, that one is meant: the same command twice trains once.

    Args:
        recipe: A recipe of the DPO stage.

    Raises:
        UserError: The recipe is one of cross-validation, which leaves no adapter.
    """
    if recipe.adapter.init_from != AUTO:
        return recipe
    if recipe.evaluation.folds is not None:
        raise UserError(
            "adapter.init_from is auto, but the recipe is a cross-validation, which leaves no adapter to go on from.",
            fix="Leave out adapter.init_from, or evaluation.folds.",
        )
    number = 1
    while session_run(recipe, number).is_complete:
        number += 1
    if number > 1:
        last = _session(recipe, number - 1)
        if not _has_new_recipe(last) and not _has_new_data(last):
            return last
    return _session(recipe, number)


def session_overrides(recipe: Recipe) -> tuple[str, ...]:
    """Returns the words that hold a recipe to the session that it means now; none where it means no session."""
    if recipe.adapter.init_from != AUTO:
        return ()
    own = session_recipe(recipe)
    words = {
        "run.name": own.run.name,
        "adapter.init_from": own.adapter.init_from,
        "data.split.like": own.data.split.like,
        **({} if own.sft.path == recipe.sft.path else {"sft.path": own.sft.path}),
    }
    return tuple(f"{key}={'null' if value is None else value}" for key, value in words.items())


def session_run(recipe: Recipe, number: int) -> RunFolder:
    """Returns where the session of this number, from 1, has its results."""
    first = RunFolder.of(recipe)
    return first if number == 1 else RunFolder(first.path.with_name(f"{recipe.run.name}-{number}"))


def source_hashes(data: DataSection) -> dict[str, str | None]:
    """Returns the SHA-256 of each source's files; None for what is no file here, such as a data set on the Hub.

    Args:
        data: The recipe's data section.
    """
    return {source.path: _hash(Path(source.path).expanduser()) for source in data.sources()}


def _session(recipe: Recipe, number: int) -> Recipe:
    if number == 1:
        return recipe.model_copy(update={"adapter": recipe.adapter.model_copy(update={"init_from": None})})
    before = str(session_run(recipe, number - 1).path)
    split = recipe.data.split.model_copy(update={"like": before})
    return recipe.model_copy(
        update={
            "adapter": recipe.adapter.model_copy(update={"init_from": before}),
            "data": recipe.data.model_copy(update={"split": split}),
            # What it has taught is in the adapter already.
            "sft": recipe.sft.model_copy(update={"path": None}),
            "run": recipe.run.model_copy(update={"name": session_run(recipe, number).path.name}),
        }
    )


def _has_new_recipe(recipe: Recipe) -> bool:
    run = RunFolder.of(recipe)
    if not run.is_run:
        return True
    # The first session may have begun with the recipe's own SFT run.
    began_with = run.load_recipe().adapter.init_from
    return not run.is_finished(
        recipe.model_copy(update={"adapter": recipe.adapter.model_copy(update={"init_from": began_with})})
    )


def _has_new_data(recipe: Recipe) -> bool:
    try:
        known = json.loads(RunFolder.of(recipe).provenance.read_text(encoding="utf-8")).get("sources")
    except (OSError, ValueError):
        return True
    return known != source_hashes(recipe.data)


def _hash(path: Path) -> str | None:
    if path.is_file():
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
        return hashlib.sha256(json.dumps([[file.name, _hash(file)] for file in files]).encode()).hexdigest()
    return None
