"""Cross-validation: one recipe and the recipes of its folds."""

from __future__ import annotations

from lora_dpo.errors import UserError
from lora_dpo.recipe.run_folder import RunFolder
from lora_dpo.recipe.schema import Recipe


def fold_overrides(recipe: Recipe) -> list[tuple[str, ...]]:
    """Returns, for each fold, what makes of a recipe with `evaluation.folds` the recipe of that fold.

    Each is a run of its own, with a fresh adapter, below the recipe's run folder.
    """
    count, run = recipe.evaluation.folds or 0, RunFolder.of(recipe)
    return [
        (
            "evaluation.folds=null",
            f"data.split.folds={count}",
            f"data.split.fold={number}",
            f"run.folder={run.path}",
            f"run.name={_name(number)}",
        )
        for number in range(1, count + 1)
    ]


def fold_runs(recipe: Recipe) -> list[RunFolder]:
    """Returns the runs of a recipe's folds, the first one first; none for a recipe without `evaluation.folds`."""
    run = RunFolder.of(recipe)
    return [RunFolder(run.path / _name(number)) for number in range(1, (recipe.evaluation.folds or 0) + 1)]


def check_is_one_training(recipe: Recipe) -> None:
    """Refuses a recipe that stands for several trainings where one is started.

    Raises:
        UserError: `evaluation.folds` is set.
    """
    if (count := recipe.evaluation.folds) is not None:
        first = " ".join(fold_overrides(recipe)[0])
        raise UserError(
            f"evaluation.folds {count} stands for {count} trainings, of which a launcher starts one.",
            fix=f"`lora-dpo dpo` runs them one after the other. To start a single fold, add: {first}",
        )


def _name(number: int) -> str:
    return f"fold-{number}"
