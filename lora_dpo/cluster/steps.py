"""The steps of a recipe, from SFT to publication: which it has, and which are complete."""

from __future__ import annotations

from typing import Any, Literal

from lora_dpo.console import note
from lora_dpo.errors import UserError
from lora_dpo.model.made_of import adapters_in
from lora_dpo.model.record import read_record
from lora_dpo.recipe.run_folder import RunFolder
from lora_dpo.recipe.schema import PRECISIONS, Recipe
from lora_dpo.recipe.stages import stage_recipe

Step = Literal["sft", "dpo", "merge", "push"]


def steps_of(recipe: Recipe, through: Step | None) -> list[Step]:
    """Returns the steps that a recipe has, in order.

    Args:
        recipe: The recipe.
        through: The last one; None takes all.

    Raises:
        UserError: The recipe has no such step.
    """
    steps: list[Step] = ["sft", "dpo", "merge"] if recipe.sft.path is not None else ["dpo", "merge"]
    if recipe.hub.repo is not None and recipe.evaluation.folds is None:
        steps.append("push")
    if why := _not_merged(recipe):
        steps.remove("merge")
        if through in (None, "merge"):
            note(f"There is no stage merge: {why}")
    if through == "merge" and why:
        return [step for step in steps if step != "push"]
    if through is None:
        return steps
    if through not in steps:
        raise UserError(
            f"--through {through}, but the recipe has no such stage.",
            why="hub.repo is null." if through == "push" else "sft.path is null.",
            fix=f"Set {'hub.repo=user/name' if through == 'push' else 'sft.path=FILE'}, or leave --through out.",
        )
    return steps[: steps.index(through) + 1]


def _not_merged(recipe: Recipe) -> str | None:
    """Returns why there is nothing to merge; None where there is."""
    if recipe.adapter.method == "full":
        return "adapter.method full trains the whole model, which is in the run's folder model/."
    if recipe.evaluation.folds is not None:
        return f"evaluation.folds {recipe.evaluation.folds} measures a recipe, and leaves a model a fold."
    return None


def place_of(recipe: Recipe, step: Step) -> str:
    """Returns the folder that a step's results are in."""
    return str(RunFolder.of(recipe).merged if step == "merge" else RunFolder.of(stage_recipe(recipe, step)).path)


def is_complete(recipe: Recipe, step: Step) -> bool:
    """Returns whether there is nothing left to do in a step.

    Raises:
        UserError: Something else is where its results would be.
    """
    if step == "push":
        return False  # the Hub is asked, and nothing is sent where nothing has changed
    if step == "merge":
        return _is_merged(recipe)
    own = stage_recipe(recipe, step)
    run = RunFolder.of(own)
    finished = run.is_finished(own)
    if finished and step == "dpo" and recipe.sft.path is not None:
        _check_goes_on_from_sft(run, RunFolder.of(stage_recipe(recipe, "sft")))
    return finished


def _check_goes_on_from_sft(run: RunFolder, sft: RunFolder) -> None:
    """Refuses a finished DPO stage whose SFT stage has been made again since."""
    from lora_dpo.model.hashes import weights_hash
    from lora_dpo.model.lineage import check_parents

    record = read_record(run.adapter) or read_record(run.model) or {}
    check_parents(str(run.path), record)
    began = record.get("model", {})
    if began.get("name") == str(sft.model) and began["weights_sha256"] != weights_hash(str(sft.model), None):
        raise UserError(
            f"{sft.model} is not the model that {run.path} began with.",
            why="The SFT stage has been made again since.",
            fix="Make the DPO stage again, with --overwrite, or give both another run.name.",
        )


def _is_merged(recipe: Recipe) -> bool:
    """Returns whether the merged model is there.

    Raises:
        UserError: Another one is.
    """
    run = RunFolder.of(recipe)
    if not run.merged.exists():
        return False
    adapter, merged = read_record(run.adapter) or {}, read_record(run.merged) or {}
    found = {
        "adapter": adapters_in(merged),
        "merge.dtype": merged.get("dtype"),
        "merge.onto": merged.get("onto"),
    }
    wanted = {
        "adapter": [adapter.get("weights_sha256")],
        "merge.dtype": recipe.merge.dtype,
        "merge.onto": recipe.merge.onto,
    }
    for what, value in wanted.items():
        if value not in ("auto", found[what]):
            raise UserError(
                f"{run.merged} is there, but it is not the model that would be made now.",
                why=f"Its {what} is {_brief(found[what])}, not {_brief(value)}.",
                fix="Move it away, or remove it; it is then made again.",
            )
    return True


def _brief(value: Any) -> str:
    return " and ".join(str(digest)[:12] for digest in value) or "unknown" if isinstance(value, list) else str(value)


def command_of(recipe: Recipe, step: Literal["merge", "push"]) -> list[str]:
    """Returns the words after `lora-dpo` that carry out a step after the training by itself."""
    run, section = RunFolder.of(recipe), recipe.merge
    if step == "push":
        return ["push", str(run.path), str(recipe.hub.repo), "--yes"]
    short = {name: word for word, name in PRECISIONS.items()}
    options = [] if section.dtype == "auto" else ["--dtype", short[section.dtype]]
    options += [] if section.onto == "auto" else ["--onto", section.onto]
    return ["merge", str(run.path), "-o", str(run.merged), *options]
