"""Clocks that also tell the largest memory of a step."""

from __future__ import annotations

import ctypes
import gc
import resource
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

import psutil
import torch

from lora_dpo.memory import memory_bytes

if TYPE_CHECKING:
    from trl import DPOTrainer

_CLEAR_REFS = Path("/proc/self/clear_refs")
_LEFT_FREE_BYTES = 2**29
_SCARCE = 0.3
"""Below this part of the machine's memory, an arm gives back what it keeps while it waits. Not above: the next step has
to ask for it again, which took TRL 5 to 12 % and ours 7 % of a step of 6 x 512 layers."""


class Reading(NamedTuple):
    """What a meter shows.

    Attributes:
        seconds: Wall-clock time.
        peak_bytes: Largest memory, None where it cannot be told.
        busy_elsewhere: Processor cores that other processes kept busy meanwhile, in the mean.
    """

    seconds: float
    peak_bytes: int | None
    busy_elsewhere: float


class Meter(Protocol):
    """Measures steps; `baseline` is called once, right before the first."""

    def baseline(self) -> None:
        """Notes what is in use before the training."""

    def start(self) -> None:
        """Starts the clock."""

    def stop(self) -> Reading:
        """Returns time and memory since the start."""


class ClockMeter:
    """Measures time alone."""

    def __init__(self, trainer: DPOTrainer) -> None:
        self._trainer = trainer
        self._start = self._busy_elsewhere = 0.0

    def baseline(self) -> None:
        """Does nothing."""

    def start(self) -> None:
        """Starts the clock."""
        self._busy_elsewhere = _busy_elsewhere_seconds()
        self._start = time.perf_counter()

    def stop(self) -> Reading:
        """Returns the time since the start."""
        seconds = time.perf_counter() - self._start
        return Reading(seconds, None, max(0.0, (_busy_elsewhere_seconds() - self._busy_elsewhere) / seconds))

    def _model_bytes(self) -> int:
        model = self._trainer.model
        return _bytes([*model.parameters(), *model.buffers()])


class ProcessMeter(ClockMeter):
    """Measures this process's resident memory (Linux).

    The peak is the growth since the first step began, plus the model's own bytes: Python and its libraries are left
    out, and the model, the adapter's gradients and its optimizer's state are counted in every arm alike.
    """

    _resident = 0

    def baseline(self) -> None:
        """Notes the resident memory, after what is free was given back to the system."""
        gc.collect()
        _give_back()
        self._resident = memory_bytes("VmRSS")

    def start(self) -> None:
        """Resets the system's high-water mark, and makes an allocation fail before the machine runs out of memory."""
        _CLEAR_REFS.write_text("5")
        free = psutil.virtual_memory().available - _LEFT_FREE_BYTES
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes("VmData") + max(free, 0), hard))
        super().start()

    def stop(self) -> Reading:
        """Returns the time since the start, and the peak of this step."""
        reading = super().stop()
        reading = reading._replace(peak_bytes=memory_bytes("VmHWM") - self._resident + self._model_bytes())
        memory = psutil.virtual_memory()
        if memory.available < memory.total * _SCARCE:
            _give_back()
        return reading


class CudaMeter(ClockMeter):
    """Measures the GPU, where several arms share a process.

    The peak is what the step itself took, plus the arm's weights (shared with the others, counted in each), adapter
    and optimizer state.
    """

    _allocated = 0

    def start(self) -> None:
        """Waits for the GPU, and starts the clock."""
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        self._allocated = torch.cuda.memory_allocated()
        super().start()

    def stop(self) -> Reading:
        """Waits for the GPU, and returns the time since the start and the step's peak."""
        torch.cuda.synchronize()
        reading = super().stop()
        growth = torch.cuda.max_memory_allocated() - self._allocated
        state = [part for parts in self._trainer.optimizer.state.values() for part in parts.values()]
        return reading._replace(peak_bytes=growth + self._model_bytes() + _bytes(filter(torch.is_tensor, state)))


METERS: dict[str, type[ClockMeter]] = {"clock": ClockMeter, "process": ProcessMeter, "cuda": CudaMeter}


def process_meter() -> str:
    """Returns the name of the meter for an arm that has a process of its own; only Linux can reset the peak."""
    return "process" if _CLEAR_REFS.exists() else "clock"


def _busy_elsewhere_seconds() -> float:
    machine, own = psutil.cpu_times(), psutil.Process().cpu_times()
    idle = machine.idle + getattr(machine, "iowait", 0.0) + getattr(machine, "guest", 0.0)
    return sum(machine) - idle - own.user - own.system


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum({part.data_ptr(): part.nbytes for part in tensors}.values())


def _give_back() -> None:
    with suppress(OSError, AttributeError):  # glibc's alone
        ctypes.CDLL(None).malloc_trim(0)
