"""Running the arms of one workload in turn: each in its own process or thread, one step at a time."""

from __future__ import annotations

import multiprocessing
import pickle
import statistics
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from benchmarks.arms import ARMS
from benchmarks.remote import serve_remotely
from benchmarks.worker import OUT_OF_MEMORY, Failure, Job, Probe, Taken, serve
from benchmarks.workloads import Step, Workload, count_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    Loader = Callable[[], tuple[PreTrainedModel, PreTrainedTokenizerBase]]

Host = Literal["process", "thread"]
_KILLED = -9
_GOODBYE_SECONDS = 60


@dataclass(slots=True)
class Measurement:
    """What the arms of a workload reported.

    Attributes:
        workload: What they trained on.
        warm_up: Steps at the start that do not count.
        taken: The measured steps of each arm, in rounds.
        losses: Losses of all steps of each arm, the warm-up's included.
        failures: Why an arm stopped early, by arm.
        probes: First step's log-probs and gradients of B and D.
        flops: Operations of D's measured steps.
        gemm: Operations a second of a matrix product, once in each measured round.
    """

    workload: Workload
    warm_up: int
    taken: dict[str, list[Taken]] = field(default_factory=dict)
    losses: dict[str, list[float]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    probes: dict[str, Probe] = field(default_factory=dict)
    flops: list[int] = field(default_factory=list)
    gemm: list[float] = field(default_factory=list)

    @property
    def measured_steps(self) -> list[Step]:
        """The steps that count."""
        return self.workload.steps[self.warm_up :]


class ArmFailedError(Exception):
    """An arm cannot go on, for lack of memory."""


@dataclass(frozen=True, slots=True)
class Setting:
    """How arms are run.

    Attributes:
        load: Returns a base model and its tokenizer.
        host: A process for each arm, or a thread; threads can share a GPU's weights.
        meter: A name in `benchmarks.meters.METERS`.
        say: Called with what is being done.
    """

    load: Loader
    host: Host
    meter: str
    say: Callable[[str], None] = lambda text: None


class _Worker:
    """The parent's end of an arm."""

    def __init__(self, key: str, steps: list[Step], setting: Setting, folder: Path) -> None:
        folder.mkdir()
        rows = round(statistics.mean(count_tokens(step).distinct for step in steps))
        job = Job(ARMS[key], setting.load, steps, folder, setting.meter, rows)
        self._log = folder / "log.txt"
        context = multiprocessing.get_context("spawn")
        self._channel, theirs = context.Pipe()
        if setting.host == "process":
            self._runner: Any = context.Process(
                target=serve_remotely, args=(theirs, pickle.dumps(job), self._log), daemon=True
            )
        else:
            self._runner = threading.Thread(target=serve, args=(theirs, job), daemon=True)
        self._runner.start()
        if setting.host == "process":
            theirs.close()  # so that its end is noticed

    def answer(self) -> Any:
        """Waits for the next answer.

        Raises:
            ArmFailedError: There was not enough memory.
            RuntimeError: There is a bug.
        """
        try:
            answer = self._channel.recv()
        except (EOFError, ConnectionResetError):
            self._runner.join()
            answer = Failure("it ended without a word", self._log.read_text() if self._log.exists() else "")
            if getattr(self._runner, "exitcode", None) == _KILLED:
                answer = OUT_OF_MEMORY
        if not isinstance(answer, Failure):
            return answer
        if answer == OUT_OF_MEMORY:
            raise ArmFailedError(answer.reason)
        raise RuntimeError(f"{answer.reason}\n{answer.traceback}")

    def ask(self, *request: Any) -> Any:
        """Sends a request and waits for its answer."""
        self._channel.send(request)
        return self.answer()

    def end(self) -> None:
        """Ends it."""
        with suppress(OSError):  # it may have ended by itself
            self._channel.send(("stop",))
        self._runner.join(_GOODBYE_SECONDS)
        self._channel.close()


def measure(workload: Workload, keys: Sequence[str], setting: Setting, warm_up: int) -> Measurement:
    """Lets the arms take the workload's steps in turn, and looks closer at B and D afterwards.

    Only one arm computes at a time, and the order changes from round to round.

    Args:
        workload: What they train on.
        keys: The arms.
        setting: How they are run.
        warm_up: Rounds at the start that do not count.
    """
    result = Measurement(workload, warm_up)
    with _workers(workload.steps, keys, setting, result.failures) as workers:
        for number in range(len(workload.steps)):
            turn = number % max(len(workers), 1)
            for key in [*list(workers)[turn:], *list(workers)[:turn]]:
                round_name = f"round {number + 1 - warm_up} of {len(workload.steps) - warm_up}"
                setting.say(f"{workload.name}: arm {key}, {'warm-up' if number < warm_up else round_name}")
                with _dropping(workers, key, result.failures):
                    taken: Taken = workers[key].ask("step")
                    result.losses.setdefault(key, []).append(taken.loss)
                    if number >= warm_up:
                        result.taken.setdefault(key, []).append(taken)
                        if key == "D":
                            result.gemm.append(workers[key].ask("gemm"))
        for key in [key for key in ("B", "D") if key in workers]:
            setting.say(f"{workload.name}: gradients of arm {key}")
            with _dropping(workers, key, result.failures):
                result.probes[key] = workers[key].ask("probe", 0)
                if key == "D":
                    result.flops = [workers[key].ask("flops", step) for step in range(warm_up, len(workload.steps))]
    return result


def probe(step: Step, key: str, setting: Setting) -> Probe:
    """Returns an arm's log-probs and gradients for one step.

    Args:
        step: The step's pairs.
        key: The arm.
        setting: How it is run.

    Raises:
        ArmFailedError: There was not enough memory.
    """
    failures: dict[str, str] = {}
    with _workers([step], [key], setting, failures) as workers:
        if key in workers:
            return workers[key].ask("probe", 0)
    raise ArmFailedError(failures[key])


@contextmanager
def _workers(
    steps: list[Step], keys: Sequence[str], setting: Setting, failures: dict[str, str]
) -> Iterator[dict[str, _Worker]]:
    with tempfile.TemporaryDirectory(prefix="lora-dpo-benchmark-") as folder, ExitStack() as stack:
        workers: dict[str, _Worker] = {}
        for key in keys:  # one after the other: they compute reference log-probs
            setting.say(f"arm {key} gets ready")
            workers[key] = _Worker(key, steps, setting, Path(folder) / key)
            stack.callback(workers[key].end)
            with _dropping(workers, key, failures):
                workers[key].answer()
        yield workers


@contextmanager
def _dropping(workers: dict[str, _Worker], key: str, failures: dict[str, str]) -> Iterator[None]:
    """Takes an arm out where its memory is exhausted."""
    try:
        yield
    except ArmFailedError as error:
        failures[key] = str(error)
        del workers[key]
