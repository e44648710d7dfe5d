"""What `lora-dpo dpo` and `lora-dpo sft` do: start a training, or one a fold, and say how to go on when stopped."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from lora_dpo.cluster.launch import plan_launch
from lora_dpo.cluster.supervise import run_launch
from lora_dpo.console import STOPPED_EXIT_CODE, err
from lora_dpo.recipe.folds import fold_overrides
from lora_dpo.recipe.loading import load_recipe
from lora_dpo.recipe.reference import check_reference_is_kept
from lora_dpo.recipe.resume import resume_folder
from lora_dpo.recipe.run_folder import RunFolder
from lora_dpo.recipe.schema import Recipe, Stage
from lora_dpo.recipe.stages import check_sft_is_done, stage_recipe


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked for.

    Attributes:
        recipe: A file, or the name of a shipped recipe.
        overrides: Values that replace the file's.
        overwrite: Replace an earlier run of this name.
        processes: Processes; None is one a GPU, and one where there is none.
        dry_run: Only check and print the command.
        reference_only: Only compute and keep the reference log-probs.
        debug: Show tracebacks of errors.
        stage: Which of the recipe's stages.
        verb: What was typed, where it was not the stage's name: a verb, and options of its own.
    """

    recipe: str
    overrides: tuple[str, ...] = ()
    overwrite: bool = False
    processes: int | None = None
    dry_run: bool = False
    reference_only: bool = False
    debug: bool = False
    stage: Stage = "dpo"
    verb: tuple[str, ...] | None = None

    def again(self, *, began: bool) -> str:
        """Returns the command that goes on.

        Args:
            began: Whether there is a run to go on with: then it must not be replaced, nor begin elsewhere.
        """
        words = [word for word in self.overrides if not (began and word.startswith("run.resume="))]
        words += ["--processes", str(self.processes)] * (self.processes is not None)
        words += ["--reference-only"] * self.reference_only
        words += ["--overwrite"] * (self.overwrite and not began)  # what it was to replace is still there
        return shlex.join(["lora-dpo", *(self.verb or (self.stage,)), self.recipe, *words])


def train(request: Request) -> int:
    """Carries out a request, and says how to go on if it was stopped.

    Returns:
        The exit code.

    Raises:
        UserError: The recipe cannot be carried out as it stands.
    """
    recipe = stage_recipe(load_recipe(request.recipe, request.overrides), request.stage)
    if recipe.evaluation.folds is not None:
        return _train_folds(request, recipe)
    run = RunFolder.of(recipe)
    if not request.reference_only and run.is_finished(recipe) and not request.overwrite:
        from lora_dpo.evaluation.report import show_finished

        show_finished(run)
        return 0
    code = _start(request, recipe, request.overrides)
    if code == STOPPED_EXIT_CODE:
        began = not request.reference_only and run.has_begun
        begin = "Go on" if began or request.reference_only else "Start again"
        err.print(f"{begin} with: {request.again(began=began)}", soft_wrap=True)
    return code


def _train_folds(request: Request, recipe: Recipe) -> int:
    """Trains the folds one after the other, each as a run of its own below the run's folder, and pools them."""
    from lora_dpo.evaluation.pooling import pool_folds
    from lora_dpo.evaluation.report import show_finished

    run = RunFolder.of(recipe)
    if run.is_finished(recipe) and not request.overwrite:
        show_finished(run)
        return 0
    run.check_free(recipe, overwrite=request.overwrite)
    writes = not (request.dry_run or request.reference_only)
    folds, began, held = fold_overrides(recipe), False, None
    for number, words in enumerate(folds, start=1):
        overrides = (*request.overrides, *words)
        own = stage_recipe(load_recipe(request.recipe, overrides), request.stage)
        fold = RunFolder.of(own)
        if fold.is_finished(own) and not request.overwrite:
            err.print(f"Fold {number} of {len(folds)} is finished: {fold.path}", soft_wrap=True)
            code = 0
        else:
            err.print(f"Fold {number} of {len(folds)}:")
            code = _start(request, own, overrides)
        if writes and held is None and fold.is_run:  # a fold that cannot begin leaves nothing behind
            held = run.reopen(recipe) if run.is_run and not request.overwrite else run.create(recipe, overwrite=True)
        began = began or fold.has_begun or number > 1
        if code:
            if code == STOPPED_EXIT_CODE:
                err.print(f"Go on with: {request.again(began=began)}", soft_wrap=True)
            return code
    if writes:
        pool_folds(recipe)
        run.discard_replaced()
    return 0


def check_can_start(recipe: Recipe, run: RunFolder, *, overwrite: bool, needs_sft: bool = True) -> None:
    """Checks before anything is launched that a run can begin, or go on.

    Args:
        recipe: The recipe of its stage.
        run: Its folder.
        overwrite: Whether an earlier run may be replaced.
        needs_sft: Whether what an SFT stage leaves must be there.

    Raises:
        UserError: It cannot.
    """
    if recipe.run.stage == "dpo" and needs_sft:
        check_sft_is_done(recipe)
    run.check_free(recipe, overwrite=overwrite)
    if overwrite or not run.began_with(recipe.run.resume):  # else the folder may have gone since
        resume_folder(recipe)
    if run.is_run:
        run.lock().release()  # another training would be found only after this one's data and model


def _start(request: Request, recipe: Recipe, overrides: tuple[str, ...]) -> int:
    """Launches one training, or shows how, and returns its exit code."""
    run = RunFolder.of(recipe)
    if request.reference_only:
        check_reference_is_kept(recipe)
    else:
        check_can_start(recipe, run, overwrite=request.overwrite, needs_sft=not request.dry_run)
    flags = {"--overwrite": request.overwrite, "--reference-only": request.reference_only, "--debug": request.debug}
    words = [request.recipe, *overrides, *(flag for flag, on in flags.items() if on)]
    launch = plan_launch(recipe, words, processes=request.processes)
    err.print(f"$ {launch.line}", soft_wrap=True)
    return 0 if request.dry_run else run_launch(launch, None if request.reference_only else run)
