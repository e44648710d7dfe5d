"""What an adapter's own training has learnt: a question of it measures nothing any more."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from lora_dpo.console import note
from lora_dpo.data.manifest import read_data
from lora_dpo.data.pair import Asked, group_of
from lora_dpo.errors import UserError
from lora_dpo.recipe.run_folder import RunFolder
from lora_dpo.recipe.schema import Recipe


def check_not_learnt(recipe: Recipe, test: Iterable[Asked]) -> None:
    """Checks that no held-out question was learnt by a run that this one begins with.

    Questions are compared by their prompts: groups may have names that only their own file knows.

    Args:
        recipe: The recipe; what it begins with is looked for in the runs' folders, those of earlier stages included.
        test: What is held out for the report.

    Raises:
        UserError: A question was learnt.
    """
    held_out = {group_of(one.prompt) for one in test}
    for run in _runs_before(recipe):
        both = held_out & _learnt(run)
        if both:
            raise UserError(
                f"{len(both)} of {len(held_out)} held-out questions were learnt by {run.path}, which this run begins "
                "with.",
                why="What was learnt measures nothing.",
                fix="Make that run again: the SFT stage of a recipe holds out what its DPO stage is tested on. Or keep "
                "its data and data.split, or test on other questions: data.path=[{path: FILE, use: test}, ...].",
            )


def _runs_before(recipe: Recipe) -> Iterator[RunFolder]:
    """Yields the runs that a recipe begins with, the newest one first."""
    seen: set[Path] = set()
    while (start := _begins_with(recipe)) is not None:
        path = Path(start).expanduser()
        run = next((run for run in (RunFolder(path), RunFolder(path.parent)) if run.is_run), None)
        if run is None:
            note(f"{start} is in no run, so it is not known whether it has learnt what is held out here.")
            return
        if run.path.resolve() in seen:
            return
        seen.add(run.path.resolve())
        yield run
        recipe = run.load_recipe()


def _begins_with(recipe: Recipe) -> str | None:
    """Returns the adapter, or the model of a run, that a training begins with; None for any other model."""
    if recipe.adapter.init_from is not None:
        return recipe.adapter.init_from
    model = Path(recipe.model.name).expanduser()
    return recipe.model.name if model.is_dir() and RunFolder(model.parent).is_run else None


def _learnt(run: RunFolder) -> set[str]:
    """Returns the prompts that a run was trained on, by `group_of`."""
    return {group_of(one.prompt) for one in read_data(run.data)["train"]}
