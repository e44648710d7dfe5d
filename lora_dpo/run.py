"""What `lora-dpo run` does: the stages of a recipe one after the other, without those that are complete."""

from __future__ import annotations

import shlex
from dataclasses import replace

from lora_dpo.cluster.start import Request, train
from lora_dpo.cluster.steps import Step, command_of, is_complete, place_of, steps_of
from lora_dpo.console import err, note
from lora_dpo.recipe.loading import load_recipe
from lora_dpo.recipe.run_folder import RunFolder
from lora_dpo.recipe.schema import Recipe
from lora_dpo.recipe.sessions import session_overrides


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
    steps = steps_of(recipe, through)
    if "push" in steps:
        check_may_push(recipe)
    complete = []
    for number, step in enumerate(steps, start=1):
        title = f"Stage {number} of {len(steps)}, {step}"
        if not request.overwrite and is_complete(recipe, step):
            err.print(f"{title}: complete, in {place_of(recipe, step)}", soft_wrap=True)
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


def check_may_push(recipe: Recipe, *, offline: bool | None = None) -> None:
    """Checks what can be known of the last stage before the first one begins.

    Args:
        recipe: The recipe.
        offline: Whether the push will only be prepared; None looks at HF_HUB_OFFLINE.

    Raises:
        UserError: The push would be refused, or the Hub does not answer and nothing has been trained yet.
    """
    from huggingface_hub import constants

    from lora_dpo.hub.beforehand import check_beforehand

    if offline is None and constants.HF_HUB_OFFLINE:
        note("HF_HUB_OFFLINE is set: the last stage prepares the push, for `lora-dpo push --pending`.")
    check_beforehand(recipe, offline=constants.HF_HUB_OFFLINE if offline is None else offline)


def _push(recipe: Recipe, *, dry: bool) -> None:
    run, hub = RunFolder.of(recipe), recipe.hub
    if dry:
        err.print(f"$ {shlex.join(['lora-dpo', *command_of(recipe, 'push')])}", soft_wrap=True)
        return
    from huggingface_hub import constants

    from lora_dpo.hub.packing import Wishes
    from lora_dpo.hub.push import Manner, push

    push(str(run.path), hub.repo, Wishes(), Manner(yes=True, prepare=constants.HF_HUB_OFFLINE), hub)


def _merge(recipe: Recipe, *, dry: bool) -> None:
    run, section = RunFolder.of(recipe), recipe.merge
    if dry:
        err.print(f"$ {shlex.join(['lora-dpo', *command_of(recipe, 'merge')])}", soft_wrap=True)
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
