"""The whole of one run: data, model, training, evaluation, pictures, report."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lora_dpo.console import STOP_FILE, err, is_main_process, note
from lora_dpo.data.build_examples import PreparedExamples
from lora_dpo.data.preview import counts_table
from lora_dpo.errors import UserError
from lora_dpo.evaluation.caveats import caveats_of_data
from lora_dpo.evaluation.evaluate import Subject, check_evaluation, evaluate
from lora_dpo.evaluation.outcomes import write_outcomes
from lora_dpo.evaluation.plots import draw_run
from lora_dpo.evaluation.policies import Policies
from lora_dpo.evaluation.report import Report, print_report, show_finished, write_report
from lora_dpo.evaluation.work import Work, kept_values
from lora_dpo.files import partial_path, replace_folder, write_json
from lora_dpo.model.base import load_tokenizer
from lora_dpo.model.lineage import own_hashes, tokenizer_hash
from lora_dpo.model.record import write_record
from lora_dpo.preparation import (
    AnyTrainer,
    Loaded,
    Setting,
    check_launch,
    fetch_weights,
    load,
    make_trainer,
    prepare_setting,
)
from lora_dpo.recipe.loading import to_yaml
from lora_dpo.recipe.reference import check_reference_is_kept
from lora_dpo.recipe.run_folder import RunFolder
from lora_dpo.recipe.schema import Recipe
from lora_dpo.training.agreement import from_first, largest, on_first
from lora_dpo.training.checkpoints import Checkpoint, Checkpoints
from lora_dpo.training.progress import TrainingLog
from lora_dpo.training.provenance import provenance, trained_record
from lora_dpo.training.reference import ReferenceCache, fill_reference
from lora_dpo.training.resumable import Session
from lora_dpo.training.resume import find_start, open_run, origin_of, write_provenance
from lora_dpo.training.saving import save_policy
from lora_dpo.training.stopping import Deadline, Stopped, StopRequests
from lora_dpo.training.trainer import PreferenceTrainer
from lora_dpo.training.zero3 import forget_order_of_passes


def align(recipe: Recipe, *, overwrite: bool = False) -> Path:
    """Runs a recipe from its data to its report, on this process's rank.

    Nothing is written before data, launch, model, adapter and arguments have been checked. An unfinished run of the
    same recipe goes on from its newest whole checkpoint.

    Args:
        recipe: The recipe.
        overwrite: Replace an earlier run of the same name.

    Returns:
        The run folder.

    Raises:
        UserError: The recipe cannot be carried out as it stands.
        Stopped: The run was asked to leave; it can go on later.
    """
    run = RunFolder.of(recipe)
    if run.is_finished(recipe) and not overwrite:  # a job that is requeued may have been through
        if is_main_process():
            show_finished(run)
        return run.path
    run.check_free(recipe, overwrite=overwrite)
    checkpoints = Checkpoints(run.checkpoints, recipe.train.keep_checkpoints)
    with StopRequests(run.stop_file, Deadline.of(recipe.train.max_hours)) as stop, ExitStack() as held:
        setting = prepare_setting(recipe)
        check_evaluation(recipe, [] if recipe.run.stage == "sft" else setting.prepared.questions["test"])
        if is_main_process():
            if not run.is_run or overwrite:  # an interrupted run has shown it before
                err.print(to_yaml(recipe).rstrip())
            err.print(counts_table(setting.prepared))
        arguments, world = check_launch(setting, checkpoints.partial)
        on_first(lambda: _take(run, recipe, held, overwrite=overwrite))
        fetch_weights(recipe)
        origin = from_first(lambda: origin_of(recipe))
        start = from_first(lambda: find_start(recipe, run, setting.data_hashes, origin, overwrite=overwrite))
        loaded = load(setting, arguments, world, start)
        on_first(lambda: held.enter_context(open_run(recipe, run, start, overwrite=overwrite)))
        log = TrainingLog(run.metrics, setting.plan.global_batch, setting.prepared.unit)
        session = Session(recipe, setting.data_hashes, origin, checkpoints, log, stop, start)
        first_step = _AfterFirstStep(run.discard_replaced)
        with _leaves_word(run, stop), _old_results_kept_until(first_step, run, start):
            trainer = _train(run, setting, loaded, session, first_step)
            report = _evaluate(run, setting, trainer, origin)
            on_first(lambda: _finish(run, report, checkpoints))
    return run.path


def _take(run: RunFolder, recipe: Recipe, held: ExitStack, *, overwrite: bool) -> None:
    """Keeps others out before it is found where the run goes on: an old job may still be saving."""
    if run.is_run:
        held.enter_context(run.lock())
        run.check_free(recipe, overwrite=overwrite)


def compute_reference(recipe: Recipe) -> None:
    """Computes the reference log-probs of a recipe's pairs, on this process's rank; the run folder is not touched.

    Args:
        recipe: The recipe.

    Raises:
        UserError: The recipe cannot be carried out as it stands, or does not keep reference log-probs.
        Stopped: The pass was asked to leave; what it has computed is kept.
    """
    check_reference_is_kept(recipe)
    stop_file = os.environ.get(STOP_FILE)
    with StopRequests(Path(stop_file) if stop_file else None) as stop, _folder_for_nothing() as unused:
        setting = prepare_setting(recipe)
        loaded = load(setting, *check_launch(setting, unused))
        cache = _fill_reference(make_trainer(setting, loaded, callbacks=[]), recipe, stop)
    if cache is None:
        raise UserError(
            f"The reference log-probs of {recipe.model.name} cannot be kept.",
            why="The model has no files that it could be known by.",
            fix="Save it to a folder with save_pretrained, and give that as model.name.",
        )
    note(f"{cache.computed:,} sequences were computed, {cache.found:,} were there already; they lie in {cache.folder}")


@contextmanager
def _folder_for_nothing() -> Iterator[Path]:
    """Gives the trainer, which makes a folder for checkpoints, one that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="lora-dpo-") as folder:
        yield Path(folder)


def _train(
    run: RunFolder, setting: Setting, loaded: Loaded, session: Session, first_step: TrainerCallback
) -> AnyTrainer:
    recipe, stop = setting.recipe, session.stop
    on_first(lambda: _write_what_is_known(run, setting, loaded, session.start))
    os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(run.tensorboard))  # Transformers takes it from nowhere else
    trainer = make_trainer(setting, loaded, callbacks=[session.log, first_step], session=session)
    if recipe.run.stage == "dpo" and recipe.dpo.reference == "cached":
        _fill_reference(trainer, recipe, stop, run_copy=run.reference)
    try:
        trainer.go()
    finally:
        session.log.close()
    _leave_if(trainer.stopped_by or stop.asked(), stop)  # it may have come too late for the last step
    target = run.model if recipe.adapter.method == "full" else run.adapter
    save_policy(trainer, partial_path(target), setting.tokenizer, loaded.below)
    on_first(lambda: _put_in_place(run, recipe, target))
    return trainer


def _put_in_place(run: RunFolder, recipe: Recipe, target: Path) -> None:
    """Renames what was trained to its place, with the record that it keeps wherever it is copied to."""
    partial = partial_path(target)
    own = own_hashes(partial)
    if recipe.adapter.method == "full":  # an adapter's tokenizer is its base's, which the record has
        saved = recipe.model.model_copy(update={"name": str(partial), "revision": None})
        own["tokenizer_sha256"] = tokenizer_hash(load_tokenizer(saved))
    write_record(partial, trained_record(run, recipe) | own)
    replace_folder(partial, target)


def _fill_reference(
    trainer: PreferenceTrainer, recipe: Recipe, stop: StopRequests, run_copy: Path | None = None
) -> ReferenceCache | None:
    with stop.in_the_loop():  # which asks after each batch, since all processes must leave the pass together
        return fill_reference(trainer, recipe, run_copy=run_copy, after_batch=lambda: _leave_if(stop.asked(), stop))


def _leave_if(asked: int, stop: StopRequests) -> None:
    """Leaves if any process was asked to; all of them must call it."""
    (reason,) = largest(asked)
    if reason:
        raise stop.stopped(reason)


def _write_what_is_known(run: RunFolder, setting: Setting, loaded: Loaded, start: Checkpoint | None) -> None:
    setting.prepared.write(run.data)
    known = provenance(setting.recipe, setting.plan, setting.prepared.summary(), loaded.model, setting.tokenizer)
    write_provenance(run, known, start)


def _evaluate(run: RunFolder, setting: Setting, trainer: AnyTrainer, origin: dict[str, str | None]) -> Report:
    """Compares before and after on the held-out test split; what was measured before a kill is not measured again."""
    recipe, prepared = setting.recipe, setting.prepared
    policies = Policies(
        trained=trainer.accelerator.unwrap_model(trainer.model),
        base=trainer.accelerator.unwrap_model(trainer.ref_model) if trainer.ref_model is not None else None,
        settle=partial(forget_order_of_passes, trainer.model_wrapped, trainer.ref_model),
    )
    test = prepared.splits["test"]
    if isinstance(prepared, PreparedExamples):
        subject = Subject(policies, prepared.encoder, [], [], test)
    else:
        subject = Subject(policies, prepared.encoder, test, prepared.questions["test"])
    several = f" and {len(subject.questions)} questions" if subject.questions else ""
    note(f"Comparing before and after on {len(test)} held-out {prepared.unit}{several}.")
    divided = trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled
    trained = str(run.model if recipe.adapter.method == "full" else run.adapter)
    work = Work(from_first(lambda: kept_values(run.evaluation, trained, origin)), together=divided)
    return Report(
        recipe=recipe,
        data=prepared.summary(),
        training={"steps": trainer.state.global_step, "seconds": round(trainer.seconds, 1)},
        measured=evaluate(work, subject, recipe),
        caveats=list(caveats_of_data(recipe, prepared.summary())),
    )


def _finish(run: RunFolder, report: Report, checkpoints: Checkpoints) -> None:
    _write(run, report)
    checkpoints.finish()
    print_report(report.as_json(), run)


def _write(run: RunFolder, report: Report) -> None:
    write_outcomes(run.outcomes, report.measured.outcomes)
    write_report(report, run, draw_run(run))


@contextmanager
def _leaves_word(run: RunFolder, stop: StopRequests) -> Iterator[None]:
    """Writes down why a run that was asked to leave did so."""
    try:
        yield
    except BaseException as error:
        cause = stop.cause_of(error)
        if isinstance(cause, Stopped) and is_main_process():
            write_json(run.stopped, cause.as_json())
        raise


class _AfterFirstStep(TrainerCallback):
    """Calls a function once, when rank 0 has made the first optimizer step.

    Attributes:
        happened: Whether this process has made a step.
    """

    def __init__(self, action: Callable[[], None]) -> None:
        self._action = action
        self.happened = False

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Does it."""
        if not self.happened and state.is_world_process_zero:
            self._action()
        self.happened = True


@contextmanager
def _old_results_kept_until(first_step: _AfterFirstStep, run: RunFolder, start: Checkpoint | None) -> Iterator[None]:
    """Puts a replaced run's results back if the new one, which begins, fails before its first step."""
    try:
        yield
    except BaseException:
        if is_main_process() and start is None and not first_step.happened:
            run.restore_replaced()
        raise
