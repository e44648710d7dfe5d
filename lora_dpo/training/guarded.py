"""A training that notices what goes wrong inside of it: a hang, a loss that is no number, sums in another order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from accelerate.utils import gather_object
from rich.text import Text
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from lora_dpo.console import err
from lora_dpo.data.chat import TokenisedExample, TokenisedPair
from lora_dpo.errors import UserError
from lora_dpo.training.agreement import largest
from lora_dpo.training.finite import FiniteCheck, GradientGate
from lora_dpo.training.hang import HangWatch
from lora_dpo.training.reduction import leave_gradients_alone, mean_gradients

_PAIRS_SHOWN = 8
_EMPTY_STEPS = 3
"""Steps in a row that may be left out whole: beyond them it is not the pairs, but the weights."""


class GuardedTrainer:
    """What goes in front of a `PlannedLoop`. `guard` must be called when it has been made."""

    _hang: HangWatch
    _finite: FiniteCheck
    _gate: GradientGate | None = None
    _kept, _empty_steps = False, 0
    _flat_gradients = False

    def guard(
        self,
        pairs: Sequence[TokenisedPair] | Sequence[TokenisedExample],
        *,
        hang_seconds: float,
        skip: bool,
        adapter: bool,
    ) -> None:
        """Sets the guards up.

        Args:
            pairs: The training pairs, or examples, in the data set's order.
            hang_seconds: The longest that a micro-batch may take.
            skip: Leave a micro-batch whose loss is no number out, instead of stopping.
            adapter: The trained weights are few, so that they may be summed over processes in one piece.
        """
        self._guarded_pairs = pairs
        self._hang = HangWatch(hang_seconds)
        self._finite = FiniteCheck()
        self._sum_in_one_piece = adapter
        self._skip = skip

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Trains under watch."""
        with self._hang.watching():
            return super().train(*args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Computes a micro-batch's gradients; after a step's last one they are the mean over the processes."""
        self._hang.beat()
        loss = super().training_step(*args, **kwargs)
        if self._flat_gradients and self.accelerator.sync_gradients:
            mean_gradients(p for p in self.model.parameters() if p.requires_grad)
        return loss

    def prediction_step(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluates a micro-batch."""
        self._hang.beat()
        return super().prediction_step(*args, **kwargs)

    def compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Computes TRL's loss and looks at it."""
        result = super().compute_loss(model, inputs, *args, **kwargs)
        if not model.training:
            return result
        loss, *others = result if isinstance(result, tuple) else (result,)
        if self._gate is not None:
            loss = self._let_through(loss)
            self._kept = self._kept or not self._gate.closed
        self._finite.see_loss(loss)
        return (loss, *others) if isinstance(result, tuple) else loss

    @property
    def left_out(self) -> bool:
        """Whether the micro-batch just computed is left out of the gradient."""
        return self._gate is not None and self._gate.closed

    def _let_through(self, loss: Tensor) -> Tensor:
        self._gate.closed = not bool(loss.isfinite().all())
        if not self._gate.closed:
            return loss
        step = self.state.global_step
        names = self._names(self._finite.seen, step)
        err.print(Text(f"Step {step + 1} leaves out, since their loss is no number: {names}"), soft_wrap=True)
        return loss.nan_to_num(0.0, 0.0, 0.0)  # its gradient would still be none: the gate stops it

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        norm = super()._get_grad_norm(*args, **kwargs)
        if norm is not None and not self.args.fp16:  # fp16 overflows now and then; its scaler knows
            self._finite.see_gradient_norm(norm)
        return norm

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        self._check_finite()
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        with self._hang.paused():  # a large model may take its time
            super()._save_checkpoint(*args, **kwargs)

    def _check_finite(self) -> None:
        if not self._finite.seen:  # Trainer comes here once more at an epoch's end
            return
        bad_losses, bad_gradient = self._finite.end_step()
        loss, gradient, kept = largest(int(bool(bad_losses)), int(bad_gradient), int(self._kept))
        self._empty_steps, self._kept = 0 if kept else self._empty_steps + 1, False
        if self._gate is not None and self._empty_steps == _EMPTY_STEPS:
            self._stop_since_nothing_is_left()
        if not (loss or gradient):
            return
        step = self.state.global_step
        culprits = gather_object([self._names(place, step - 1) for place in bad_losses])
        what = "loss" if loss else "gradient"
        self._stop_all(
            f"The {what} became no number at step {step}.",
            why=f"It was made by {'; '.join(culprits)}." if culprits else "Every loss of the step was one.",
            fix="Nothing of this step was saved. Look at the data, take a smaller train.learning_rate or another "
            "model.dtype" + ("; or leave such micro-batches out: train.on_nan=skip." if culprits else "."),
        )

    def _stop_since_nothing_is_left(self) -> None:
        self._stop_all(
            f"No loss of {_EMPTY_STEPS} steps in a row is a number, up to step {self.state.global_step}.",
            why="With so many left out it is not the pairs: the weights, or the precision, have gone wrong.",
            fix="Go back to an earlier checkpoint with run.resume=PATH, or begin anew with a smaller "
            "train.learning_rate or another model.dtype.",
        )

    def _stop_all(self, what: str, *, why: str, fix: str) -> NoReturn:
        """Ends every process alike; the first one says why for all."""
        if not self.is_world_process_zero():
            raise SystemExit(UserError.exit_code)
        raise UserError(what, why=why, fix=fix)

    def _names(self, place: int, step: int) -> str:
        """Returns where the pairs of one of this process's micro-batches come from."""
        plan = self.train_sampler.plan
        batch = plan.micro_batch(step, place, self.args.process_index)
        indices = [pair.index for pair in batch if pair.weight > 0]  # others only fill a place
        names = [self._guarded_pairs[index].origin for index in indices]
        more = f" and {len(names) - _PAIRS_SHOWN} more" if len(names) > _PAIRS_SHOWN else ""
        return "; ".join(names[:_PAIRS_SHOWN]) + more

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        model, loader = super()._prepare_for_training(*args, **kwargs)
        if self._skip:  # only now are these the parameters that will be trained, under FSDP2
            self._gate = GradientGate(p for p in self.model.parameters() if p.requires_grad)
        if self._sum_in_one_piece and isinstance(model, DistributedDataParallel):
            leave_gradients_alone(model)
            self._flat_gradients = True
        return model, loader
