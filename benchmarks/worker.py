"""One arm in a process or thread of its own: it trains, but takes every step only when it is told to."""

from __future__ import annotations

import gc
import statistics
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from transformers import TrainerCallback
from trl import DPOTrainer

from benchmarks.arms import Arm, batch_of, build_trainer, draw_adapter
from benchmarks.flops import counting_flops
from benchmarks.meters import METERS, Meter
from benchmarks.workloads import Step

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_GEMM_SECONDS = 0.3


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker is to do.

    Attributes:
        arm: The arm.
        load: Returns the base model and its tokenizer.
        steps: Pairs of each optimizer step.
        folder: For what the trainer may write.
        meter: A name in `METERS`.
        gemm_rows: Rows of the matrix product that `Ask.gemm` times.
    """

    arm: Arm
    load: Callable[[], tuple[PreTrainedModel, PreTrainedTokenizerBase]]
    steps: list[Step]
    folder: Path
    meter: str
    gemm_rows: int


class Taken(NamedTuple):
    """A step that was taken.

    Attributes:
        seconds: From one step's end to the next one's: collating, forward, backward, optimizer, logging.
        peak_bytes: Largest memory, None where it cannot be told.
        busy_elsewhere: Processor cores that other processes kept busy meanwhile, in the mean.
        loss: The step's loss.
    """

    seconds: float
    peak_bytes: int | None
    busy_elsewhere: float
    loss: float


@dataclass(frozen=True, slots=True)
class Probe:
    """What an arm computes for a batch.

    Attributes:
        log_probs: Of each sequence, chosen ones first, shape (2 * pairs,).
        gradients: Of each adapter matrix.
    """

    log_probs: np.ndarray
    gradients: dict[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an arm cannot go on.

    Attributes:
        reason: In a few words.
        traceback: For a bug; empty where there was not enough memory.
    """

    reason: str
    traceback: str = ""


OUT_OF_MEMORY = Failure("out of memory")


def serve(channel: Connection, job: Job) -> None:
    """Builds the arm's trainer, says that it is ready, and trains; every step and every answer waits for a request.

    Args:
        channel: Requests come in, answers go out: names of `Gate`'s methods, with their arguments.
        job: What to do.
    """
    failure = None
    try:
        _train(channel, job)
    except _Stopped:
        pass
    except Exception as error:
        failure = OUT_OF_MEMORY if _is_out_of_memory(error) else Failure(repr(error), traceback.format_exc())
    gc.collect()
    if torch.cuda.is_available():  # a thread's memory is the other arms' as well
        torch.cuda.empty_cache()
    if failure is not None:
        channel.send(failure)
    channel.close()


def _train(channel: Connection, job: Job) -> None:
    trainer = build_trainer(job.arm, *job.load(), job.steps, job.folder)
    trainer.add_callback(Gate(channel, trainer, job))
    trainer.train()


class Gate(TrainerCallback):
    """Stops the training before every step until the next request to go on; answers other requests meanwhile."""

    def __init__(self, channel: Connection, trainer: DPOTrainer, job: Job) -> None:
        self._channel = channel
        self._trainer = trainer
        self._job = job
        self._meter: Meter = METERS[job.meter](trainer)
        self._loss = torch.zeros(())
        self._training_step = trainer.training_step
        trainer.training_step = self._noting_the_loss

    def on_step_begin(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
        """Waits before the first step."""
        if state.global_step == 0:
            self._meter.baseline()
            self._channel.send("ready")
            self._wait()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Reports the step, and waits before the next.

        It waits here because the trainer collates the next batch, trees included, before `on_step_begin`.
        """
        reading = self._meter.stop()
        self._channel.send(Taken(*reading, self._loss.item()))
        self._wait()

    def probe(self, step: int) -> Probe:
        """Returns a step's log-probs and gradients under the adapter that all arms started from."""
        draw_adapter(self._trainer.model)
        log_probs: list[torch.Tensor] = []
        hook = self._trainer.model.register_forward_hook(
            lambda module, given, output: log_probs.append(output.log_probs.detach().double().sum(1))
        )
        try:
            self._forward_backward(step)
        finally:
            hook.remove()
        gradients = {
            name: part.grad.float().cpu().numpy()
            for name, part in self._trainer.model.named_parameters()
            if part.grad is not None
        }
        self._trainer.model.zero_grad()
        return Probe(log_probs[0].cpu().numpy(), gradients)  # the second, if any, is the live reference's

    def flops(self, step: int) -> int:
        """Returns the floating-point operations of a step's forward and backward pass, in matrix products."""
        with counting_flops() as counter:
            self._forward_backward(step)
        self._trainer.model.zero_grad()
        return counter.get_total_flops()

    def gemm(self) -> float:
        """Returns how many operations a second a matrix product of the trunk's shape gets: an MLP's first layer."""
        model = self._trainer.model
        config = model.config.get_text_config()
        hidden = config.hidden_size
        inner = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * hidden
        left, right = (
            torch.randn(shape, device=model.device).to(model.dtype)
            for shape in ((self._job.gemm_rows, hidden), (hidden, inner))
        )
        meter = METERS["cuda" if model.device.type == "cuda" else "clock"](self._trainer)
        seconds: list[float] = []
        begin = time.perf_counter()
        while len(seconds) < 5 or time.perf_counter() - begin < _GEMM_SECONDS:
            meter.start()
            torch.mm(left, right)
            seconds.append(meter.stop().seconds)
        return 2 * self._job.gemm_rows * hidden * inner / statistics.median(seconds[1:])

    def _forward_backward(self, step: int) -> None:
        self._trainer.model.zero_grad()
        self._training_step(self._trainer.model_wrapped, batch_of(self._trainer, step))

    def _noting_the_loss(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        self._loss = self._training_step(*args, **kwargs)
        return self._loss

    def _wait(self) -> None:
        while True:
            try:
                name, *arguments = self._channel.recv()
            except EOFError:  # the parent is gone
                raise _Stopped from None
            if name == "stop":
                raise _Stopped
            if name == "step":
                self._meter.start()
                return
            self._channel.send(getattr(self, name)(*arguments))


class _Stopped(Exception):  # noqa: N818 - no error
    pass


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
