"""What `lora-dpo run` does: the stages of a recipe one after the other, without those that are complete."""

from __future__ import annotations

import shlex
from dataclasses import replace
from typing import Any, Literal

from lora_dpo.cluster.start import Request, train
from lora_dpo.console import err, note
from lora_dpo.errors import UserError
from lora_dpo.model.record import read_record
from lora_dpo.recipe.loading import load_recipe
from lora_dpo.recipe.run_folder import RunFolder
from lora_dpo.recipe.schema import PRECISIONS, Recipe
from lora_dpo.recipe.sessions import session_overrides
from lora_dpo.recipe.stages import stage_recipe

Step = Literal["sft", "dpo", "merge", "push"]


def run(request: Request, through: Step | None = None) -> int:
    """Carries out a recipe's stages in order, from where it stopped.

    Args:
        request: What was asked for; its stage does not count.
        through: The last stage; None takes all that the recipe has.

    Returns:
        The exit code.

    Raises:
        UserError: A stage cannot be carried out as it stands, or the recipe has no such stage.
    """
    recipe = load_recipe(request.recipe, request.overrides)
    if words := session_overrides(recipe):  # which another finished stage would change
        request = replace(request, overrides=(*request.overrides, *words))
        recipe = load_recipe(request.recipe, request.overrides)
    steps = _steps(recipe, through)
    if "push" in steps and not request.dry_run:
        _check_may_push(recipe)
    complete = []
    for number, step in enumerate(steps, start=1):
        title = f"Stage {number} of {len(steps)}, {step}"
        if not request.overwrite and _is_complete(recipe, step):
            err.print(f"{title}: complete, in {_place(recipe, step)}", soft_wrap=True)
            complete.append(step)
            continue
        err.print(f"{title}:")
        if step == "merge":
            _merge(recipe, dry=request.dry_run)
        elif step == "push":
            _push(recipe, dry=request.dry_run)
        elif code := train(replace(request, stage=step)):
            return code
    if complete == [step for step in steps if step != "push"] and steps[-1] != "sft":
        _show_again(recipe)
    return 0


def _steps(recipe: Recipe, through: Step | None) -> list[Step]:
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


def _place(recipe: Recipe, step: Step) -> str:
    return str(RunFolder.of(recipe).merged if step == "merge" else RunFolder.of(stage_recipe(recipe, step)).path)


def _is_complete(recipe: Recipe, step: Step) -> bool:
    if step == "push":
        return False  # the Hub is asked, and nothing is sent where nothing has changed
    if step == "merge":
        return _is_merged(recipe)
    own = stage_recipe(recipe, step)
    return RunFolder.of(own).is_finished(own)


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
        "adapter": [part["weights_sha256"] for part in merged.get("adapters", [])],
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


def _check_may_push(recipe: Recipe) -> None:
    """Checks what can be known of the last stage before the first one begins."""
    from huggingface_hub import constants

    from lora_dpo.hub.push import check_beforehand

    if constants.HF_HUB_OFFLINE:
        note("HF_HUB_OFFLINE is set: the last stage prepares the push, for `lora-dpo push --pending`.")
    check_beforehand(recipe.hub, offline=constants.HF_HUB_OFFLINE)


def _push(recipe: Recipe, *, dry: bool) -> None:
    run, hub = RunFolder.of(recipe), recipe.hub
    if dry:
        err.print(f"$ {shlex.join(['lora-dpo', 'push', str(run.path), str(hub.repo), '--yes'])}", soft_wrap=True)
        return
    from huggingface_hub import constants

    from lora_dpo.hub.packing import Wishes
    from lora_dpo.hub.push import Manner, push

    push(str(run.path), hub.repo, Wishes(), Manner(yes=True, prepare=constants.HF_HUB_OFFLINE), hub)


def _merge(recipe: Recipe, *, dry: bool) -> None:
    run, section = RunFolder.of(recipe), recipe.merge
    if dry:
        short = {name: word for word, name in PRECISIONS.items()}
        options = [] if section.dtype == "auto" else ["--dtype", short[section.dtype]]
        options += [] if section.onto == "auto" else ["--onto", section.onto]
        err.print(
            f"$ {shlex.join(['lora-dpo', 'merge', str(run.path), '-o', str(run.merged), *options])}", soft_wrap=True
        )
        return
    from lora_dpo.merging.merge import Request as MergeRequest
    from lora_dpo.merging.merge import merge
    from lora_dpo.merging.report import print_merge

    dtype = None if section.dtype == "auto" else section.dtype
    onto = None if section.onto == "auto" else section.onto
    print_merge(merge(MergeRequest([str(run.path)], run.merged, dtype, onto)), run.merged)


def _show_again(recipe: Recipe) -> None:
    from lora_dpo.evaluation.report import show_finished

    show_finished(RunFolder.of(recipe))
