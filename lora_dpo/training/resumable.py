"""Trainer's checkpoints made complete, and a training that goes on from one as if it had never ended.

Reading order: `Session`, `_maybe_log_save_evaluate` (what happens after each step), `_save_checkpoint`, then the
overrides that a resumed training passes through, in the order in which Trainer calls them.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import DistributedType
from accelerate.utils import gather_object
from peft import PeftModel
from transformers.trainer import SCHEDULER_NAME, TRAINER_STATE_NAME

from lora_dpo.console import note
from lora_dpo.errors import UserError
from lora_dpo.model.record import write_record
from lora_dpo.recipe.batch import processes
from lora_dpo.recipe.meaning import meaning_hash
from lora_dpo.recipe.run_folder import RunFolder
from lora_dpo.recipe.schema import Recipe
from lora_dpo.training.agreement import largest, on_first
from lora_dpo.training.checkpoints import About, Checkpoint, Checkpoints
from lora_dpo.training.continuity import load_continuity, save_continuity
from lora_dpo.training.progress import TrainingLog
from lora_dpo.training.provenance import trained_record
from lora_dpo.training.saving import Measure, check_saved, measure
from lora_dpo.training.stopping import StopRequests
from lora_dpo.training.weights import load_trained

_DIVIDED_BY_WORLD = "zero"


@dataclass(frozen=True, slots=True)
class Session:
    """One process's share in a run that may have begun before it and may go on after it.

    Attributes:
        recipe: The recipe.
        data: Hash of each split's pairs.
        origin: What the run began with and the recipe only names.
        checkpoints: Where checkpoints go.
        log: Writer of metrics.jsonl.
        stop: What may ask the run to leave.
        start: The checkpoint that it goes on from; None at the beginning.
    """

    recipe: Recipe
    data: dict[str, str]
    origin: dict[str, str | None]
    checkpoints: Checkpoints
    log: TrainingLog
    stop: StopRequests
    start: Checkpoint | None = None


class ResumableTrainer:
    """What goes in front of a `PlannedLoop`: checkpoints that count, leaving in order, and going on exactly.

    Attributes:
        session: This process's share in the run; None is a training without checkpoints.
        stopped_by: What asked for the stop, a place in `REASONS`, where the training has left at somebody's wish.
        seconds: Time spent in training, that of earlier processes included.
    """

    session: Session | None = None
    stopped_by: int = 0
    seconds: float = 0.0
    _evaluation_due = False
    _restored = False
    _step_seen = 0

    @property
    def _start(self) -> Checkpoint | None:
        return self.session.start if self.session else None

    def go(self) -> None:
        """Trains from the session's start to the end, or to where the run is asked to leave; needs a session."""
        start = self.session.start
        self._began = time.monotonic()
        if start is not None:
            self._step_seen = start.about.step
            self._say_what_is_rebuilt(start)
        with self.session.stop.in_the_loop():
            self.train(resume_from_checkpoint=str(start.path) if start else None)
            self.session.stop.steps_made(self.state.global_step, self.state.max_steps)
        self.seconds += time.monotonic() - self._began

    # After each step

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        if self.state.global_step > self._step_seen:  # Trainer comes here once more at an epoch's end
            self._step_seen = self.state.global_step
            if self.session is not None:
                self._agree_to_stop(self.session.stop)
                if self.state.global_step >= self.state.max_steps:
                    self.control.should_save = True  # there is a report to come, and nothing else to go on from
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def _agree_to_stop(self, stop: StopRequests) -> None:
        stop.deadline.step_ended()
        (reason,) = largest(stop.due())
        if reason:
            self.stopped_by = reason
            self._evaluation_due = self.control.should_evaluate  # made up for by the process that goes on
            self.control.should_evaluate = False
            self.control.should_save = self.control.should_training_stop = True

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        if self.session is None:
            super()._save_checkpoint(model, trial)
            return
        session, began, step = self.session, time.monotonic(), self.state.global_step
        written = session.checkpoints.partial / f"checkpoint-{step}"
        on_first(session.checkpoints.clear_partial)
        # No agreement on failures in here: DeepSpeed and FSDP wait for each other, and one that fails must leave.
        super()._save_checkpoint(model, trial)
        self._complete(written)
        measures = measure(self.accelerator.unwrap_model(self.model))
        files = gather_object([file.relative_to(written).as_posix() for file in written.rglob("*") if file.is_file()])
        on_first(lambda: self._commit(written, measures, set(files)))
        session.stop.deadline.saved(time.monotonic() - began)

    def _complete(self, written: Path) -> None:
        seconds = self.seconds + time.monotonic() - self._began
        save_continuity(self, written, seconds=seconds, evaluation_due=self._evaluation_due)
        if self.state.best_global_step:  # Trainer saw the folder it wrote into
            self._set_best_checkpoint(being_written=True)
            if self.is_world_process_zero():
                self.state.save_to_json(str(written / TRAINER_STATE_NAME))

    def _commit(self, written: Path, measures: dict[str, Measure], files: set[str]) -> None:
        session = self.session
        if missing := sorted(name for name in files if not (written / name).is_file()):
            raise UserError(
                f"The checkpoint {written} lacks {missing[0]}, which another process wrote.",
                why="The processes do not see one folder, so no checkpoint of theirs can be whole.",
                fix="Put the run on a filesystem that all nodes share: run.folder=DIR.",
            )
        check_saved(written, measures)
        write_record(written, trained_record(RunFolder(session.checkpoints.folder.parent), session.recipe))
        about = About(
            step=self.state.global_step,
            max_steps=self.state.max_steps,
            world_size=self.args.world_size,
            layout=self._layout(),
            recipe=session.recipe.model_dump(mode="json"),
            recipe_hash=meaning_hash(session.recipe),
            data=session.data,
            origin=session.origin,
            metrics_bytes=session.log.sync(),
        )
        session.checkpoints.commit(written, about, self.state.best_global_step)

    def _set_best_checkpoint(self, *, being_written: bool = False) -> None:
        best = self.state.best_global_step
        place = self.session.checkpoints.place(best)
        there = place.is_dir() or (being_written and best == self.state.global_step)
        self.state.best_model_checkpoint = str(place) if there else None

    # Going on

    def _layout(self) -> str:
        """Returns how the optimizer's state is kept: whole on every process (replicated), or divided."""
        kind = self.accelerator.distributed_type
        if kind == DistributedType.DEEPSPEED:
            return f"{_DIVIDED_BY_WORLD}{self.accelerator.state.deepspeed_plugin.zero_stage}"
        return "fsdp2" if kind == DistributedType.FSDP else "replicated"

    def _fits(self, start: Checkpoint) -> bool:
        """Returns whether the optimizer's state can be read as it lies in the checkpoint."""
        layout = self._layout()
        same_world = start.about.world_size == self.args.world_size
        return start.about.layout == layout and (same_world or not layout.startswith(_DIVIDED_BY_WORLD))

    def _say_what_is_rebuilt(self, start: Checkpoint) -> None:
        about = start.about
        note(f"Going on from {start.path}, after step {about.step} of {about.max_steps}.")
        if not self._fits(start):
            note(
                f"It was written by {processes(about.world_size)} ({about.layout}); this is "
                f"{processes(self.args.world_size)} ({self._layout()}). Weights, schedule and place in the data carry "
                "over; the optimizer's moments are built anew."
            )

    def _init_training_state(self, max_steps: int, *args: Any, **kwargs: Any) -> tuple[int, int]:
        place = super()._init_training_state(max_steps, *args, **kwargs)
        if self._start is not None:
            self.state.compute_steps(self.args, max_steps)  # the recipe may ask for other intervals now
            if self.state.best_global_step:
                self._set_best_checkpoint()
        return place

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None
    ) -> tuple[Any, Any]:
        start = self._start
        if start is None or self._fits(start):
            return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        adapter = isinstance(self.model, PeftModel)  # a whole model has been loaded from the checkpoint
        if self.is_deepspeed_enabled and adapter:  # before the engine makes its own copies
            load_trained(self.model, start.path)
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        if self.is_fsdp_enabled and adapter:
            load_trained(self.accelerator.unwrap_model(self.model), start.path)
        self._go_on_with_schedule(torch.load(start.path / SCHEDULER_NAME, weights_only=True))
        return prepared

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        trained, start = self.accelerator.unwrap_model(self.model), self._start
        fits = start is None or self._fits(start)
        if isinstance(trained, PeftModel) and (self.is_fsdp_enabled or not fits):
            # Accelerate gives FSDP2 the adapter alone, whole, and PyTorch then trips over the frozen weights.
            load_trained(trained, Path(resume_from_checkpoint))
        elif fits:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _go_on_with_schedule(self, state: dict[str, Any]) -> None:
        """Moves the schedule on; DeepSpeed keeps another number of parameter groups, so its lists do not fit."""
        schedule = self.lr_scheduler
        schedule.last_epoch, schedule._step_count = state["last_epoch"], state["_step_count"]
        (rate,) = set(state["_last_lr"])  # all groups have one
        schedule._last_lr = [rate] * len(schedule.base_lrs)
        for group in schedule.optimizer.param_groups:
            group["lr"] = rate

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        self._restore()
        if self.state.global_step >= self.state.max_steps:  # Trainer would make one more step before it looks
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Makes up for an evaluation that a stop left out, then computes a micro-batch's gradients."""
        self._evaluate_if_due()  # here, since the state of the random numbers has been restored by now
        return super().training_step(*args, **kwargs)

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        self._restore()
        if not self.stopped_by:
            self._evaluate_if_due()
        return super()._finalize_training(*args, **kwargs)

    def _restore(self) -> None:
        """Gives the trainer back what its checkpoint does not hold, once."""
        start = self._start
        if start is None or self._restored:
            return
        part = load_continuity(self, start.path, start.about.world_size)
        self.seconds, self._evaluation_due = part["seconds"], part["evaluation_due"]
        self.session.log.go_on_from(self._total_train_tokens)
        self._restored = True

    def _evaluate_if_due(self) -> None:
        if self._evaluation_due:
            self._evaluation_due = False
            self._determine_best_metric(self._evaluate(None, None), None)
            if self.state.best_global_step:
                self._set_best_checkpoint()
