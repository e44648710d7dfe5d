"""Where `run.resume` points."""

from __future__ import annotations

from pathlib import Path

from lora_dpo.errors import UserError, did_you_mean
from lora_dpo.recipe.schema import Recipe

_WORDS = ("auto", "never")


def resume_folder(recipe: Recipe) -> Path | None:
    """Returns the folder that a recipe's `run.resume` names: a checkpoint, or a run; None for `auto` and `never`.

    Raises:
        UserError: There is no such folder.
    """
    resume = recipe.run.resume
    if resume in _WORDS:
        return None
    path = Path(resume).expanduser()
    if not path.is_dir():
        beside = [str(folder) for folder in path.parent.glob("*") if folder.is_dir() and folder.name[0] != "."]
        raise UserError(
            f"run.resume is {resume}, which is no folder.",
            why="It is auto, never, a checkpoint's folder, or a run's, whose newest checkpoint is then meant.",
            fix=did_you_mean(resume, [*_WORDS, *beside]),
        )
    return path
