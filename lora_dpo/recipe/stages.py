"""A recipe's stages, SFT and DPO: what of the recipe each of them means, and where each has its run."""

from __future__ import annotations

from lora_dpo.errors import UserError
from lora_dpo.recipe.run_folder import RunFolder
from lora_dpo.recipe.schema import Recipe, Stage
from lora_dpo.recipe.sessions import AUTO, session_recipe

UNITS: dict[Stage, str] = {"sft": "examples", "dpo": "pairs"}
"""What each stage learns from."""
_SUFFIX = "-sft"


def stage_recipe(recipe: Recipe, stage: Stage) -> Recipe:
    """Returns the recipe as one of its stages carries it out.

    The SFT stage has a run of its own, `NAME-sft` beside `NAME`, and its own schedule. The DPO stage of a recipe with
    an SFT stage begins with what came out of that. The recipe of a stage is its own.

    Args:
        recipe: A recipe, or that of a stage.
        stage: The stage.

    Raises:
        UserError: The recipe has no such stage, or says of it what cannot be.
    """
    return _sft_recipe(recipe) if stage == "sft" else _dpo_recipe(session_recipe(recipe))


def sft_run(recipe: Recipe) -> RunFolder:
    """Returns the run of a recipe's SFT stage."""
    if recipe.run.stage == "sft":
        return RunFolder.of(recipe)
    return RunFolder(RunFolder.of(recipe).path.with_name(recipe.run.name + _SUFFIX))


def check_sft_is_done(recipe: Recipe) -> None:
    """Checks that a DPO stage finds what its recipe's SFT stage is to leave.

    Args:
        recipe: The recipe of the DPO stage.

    Raises:
        UserError: The SFT stage has not gone through.
    """
    run = sft_run(recipe)
    begins_with = {"adapter.init_from": (recipe.adapter.init_from, run.path, run.adapter)}
    begins_with["model.name"] = (recipe.model.name, run.model, run.model)
    for key, (value, own, needed) in begins_with.items():
        if recipe.sft.path is not None and value == str(own) and not needed.is_dir():
            raise UserError(
                f"The DPO stage begins with {own}, where no SFT stage has gone through.",
                why=f"The recipe has an SFT stage (sft.path), so {key} is what that leaves.",
                fix="Run `lora-dpo sft` with the same words first; or set sft.path=null to leave the stage out.",
            )


def _sft_recipe(recipe: Recipe) -> Recipe:
    sft, run = recipe.sft, sft_run(recipe)
    if sft.path is None:
        raise UserError("The recipe has no SFT stage: sft.path is null.", fix="Name the data: sft.path=FILE.")
    if recipe.evaluation.folds is not None:
        raise UserError(
            f"evaluation.folds {recipe.evaluation.folds} is cross-validation of the DPO stage.",
            why="The folds together test on every question, so an SFT stage before them could train on none.",
            fix="Set evaluation.folds=null.",
        )
    if recipe.adapter.init_from not in (None, AUTO, str(run.path), str(run.adapter)):
        raise UserError(
            f"adapter.init_from is {recipe.adapter.init_from}, but the SFT stage begins with a fresh adapter.",
            fix="Leave it out: the DPO stage of a recipe with an SFT stage begins with that by itself.",
        )
    schedule = {"learning_rate": sft.learning_rate, "epochs": sft.epochs, "max_steps": sft.max_steps}
    return recipe.model_copy(
        update={
            "adapter": recipe.adapter.model_copy(update={"init_from": None, "init_mode": "continue"}),
            # Its loss is the mean over a step's tokens.
            "train": recipe.train.model_copy(update={**schedule, "weight": "pair", "trl": sft.trl}),
            "run": recipe.run.model_copy(update={"name": run.path.name, "stage": "sft"}),
        }
    )


def _dpo_recipe(recipe: Recipe) -> Recipe:
    if recipe.run.stage == "sft":
        raise UserError(
            "This is the recipe of an SFT run, not of a DPO stage.", fix="Give the recipe that the SFT run was made of."
        )
    if recipe.sft.path is not None and recipe.adapter.init_from is None:
        run = sft_run(recipe)
        if recipe.adapter.method == "full":
            if recipe.dpo.reference_model == "base":
                raise UserError(
                    "dpo.reference_model is base, but the SFT stage has trained the whole model, base included.",
                    fix="Use dpo.reference_model=init, or adapter.method=lora.",
                )
            model = recipe.model.model_copy(update={"name": str(run.model), "revision": None})
            return recipe.model_copy(update={"model": model})
        adapter = recipe.adapter.model_copy(update={"init_from": str(run.path)})
        return recipe.model_copy(update={"adapter": adapter})
    if recipe.adapter.init_mode == "merge" and recipe.adapter.init_from is None:
        raise UserError(
            "adapter.init_mode is merge, but there is no adapter to merge.",
            fix="Name one: adapter.init_from=PATH; or leave adapter.init_mode out.",
        )
    return recipe
