"""What the user sees: two consoles, logging set up once, and one way to end with an error."""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from io import TextIOWrapper
from pathlib import Path
from types import FrameType
from typing import NoReturn, TypeVar

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import track
from rich.text import Text

from lora_dpo.errors import UserError

out = Console(highlight=False)
"""Results: what a user may pipe into a file."""

err = Console(stderr=True, highlight=False)
"""Progress, notes and errors."""

SECONDS_BETWEEN_LINES = 10.0
"""How often a log, which has no use for bars, is told how far something is."""

_WAKE_SECONDS = 0.2
"""How long a Ctrl-C may go unseen that came between a question and the wait for its answer."""

EXIT_CODE_FILE = "LORA_DPO_EXIT_CODE_FILE"
"""Environment variable with a file for the exit code, since `accelerate launch` turns every failure into 1.

Below the code may stand what went wrong: a launcher of several processes buries it under a report of its own."""

STOP_FILE = "LORA_DPO_STOP_FILE"
"""Environment variable with the file that asks a launch to leave which has no run folder to look for one in."""

STOPPED_EXIT_CODE = 85
"""Exit code of a run that has left in order and wants to be started again."""

T = TypeVar("T")

_NOISE = {
    "accelerate.big_modeling": "Some parameters are on the meta device",  # weights stay in their files on purpose
    "DeepSpeed": "Setting accelerator to CPU",  # at every import on a machine without a GPU
    "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward",  # an optional faster kernel
}
_DISK_FULL_TEXTS = ("No space left on device", "os error 28", "Disk quota exceeded")
_TORCH_SHORT_WRITE = ("unexpected pos", "PytorchStreamWriter failed writing")  # torch.save does not say why


def is_main_process() -> bool:
    """Returns whether this process is rank 0, or the only one."""
    return int(os.environ.get("RANK", "0")) == 0


def note(text: str) -> None:
    """Prints one line that the user should see once, on rank 0 only."""
    if is_main_process():
        err.print(Text(text), soft_wrap=True)


def show_error(text: str, who: str = "") -> None:
    """Prints what went wrong; `who` stands in front of it where several processes may speak."""
    err.print(Text.assemble((f"{who}Error: ", "bold red"), text), soft_wrap=True)


def tracked(items: Iterable[T], label: str, total: int | None = None) -> Iterable[T]:
    """Returns the items, and shows on rank 0 how far they are: by a bar, or in a log by a line now and then."""
    if not is_main_process():
        return items
    if not err.is_terminal:
        return _logged(items, label, total)
    return track(items, label, total=total, console=err, transient=True)


def _logged(items: Iterable[T], label: str, total: int | None) -> Iterator[T]:
    count = total if total is not None or not isinstance(items, Sized) else len(items)
    of_all = "" if count is None else f" of {count:,}"
    line_due = time.monotonic() + SECONDS_BETWEEN_LINES
    for done, item in enumerate(items, start=1):
        yield item
        if time.monotonic() >= line_due:
            err.print(f"{label}: {done:,}{of_all}", soft_wrap=True)
            line_due = time.monotonic() + SECONDS_BETWEEN_LINES


def set_up_logging(*, debug: bool = False) -> None:
    """Configures logging once: INFO from rank 0, WARNING from the others; libraries from WARNING on."""
    handler = RichHandler(console=err, show_path=debug, show_time=debug, markup=False)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler], force=True)
    own = logging.getLogger("lora_dpo")
    own.setLevel(logging.DEBUG if debug else logging.INFO if is_main_process() else logging.WARNING)
    if not debug:
        warnings.simplefilter("ignore", FutureWarning)  # libraries' deprecations are not the user's to mend
        warnings.simplefilter("ignore", DeprecationWarning)
        for name, text in _NOISE.items():
            logging.getLogger(name).addFilter(lambda record, text=text: text not in record.getMessage())
    if not err.is_terminal:  # a batch job's log has no use for bars that redraw themselves
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("TQDM_DISABLE", "1")


def replace_what_cannot_be_shown() -> None:
    """Lets stdout show a question mark for what its encoding does not have, such as an emoji in Latin-1."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


@contextmanager
def interrupts_are_seen() -> Iterator[None]:
    """Lets Ctrl-C interrupt `input` whenever it comes.

    Python notes a signal and acts on it when the call that waits for keys is interrupted. One that comes after the
    prompt is shown and before that call has begun would wait for the next key; so the call is woken again and again.
    """
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, _WAKE_SECONDS, _WAKE_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def errors_end_the_program(*, debug: bool = False) -> Iterator[None]:
    """Turns a `UserError` into a message and exit code 2; a full disk too; bugs keep their traceback.

    Args:
        debug: Show the traceback of a `UserError` as well.

    Raises:
        SystemExit: With the exit code 2 for a mistake, 130 for Ctrl-C.
    """
    interrupted = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        interrupted = True
        signal.default_int_handler(number, frame)

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell lets background jobs ignore it
        signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    except KeyboardInterrupt:
        _exit_interrupted()
    except Exception as error:
        mistake = error if isinstance(error, UserError) else disk_full_error(error)
        if mistake is None:
            if interrupted and not debug:  # within a call of torch the KeyboardInterrupt may become a ValueError
                _exit_interrupted()
            leave_exit_code(1)  # so that what ends without one is known to have been killed
            leave_failure(f"{type(error).__name__}: {error}", traceback.format_exc())
            raise
        if debug:
            err.print_exception()
        show_error(str(mistake), who="" if is_main_process() else f"[rank {os.environ['RANK']}] ")
        _exit(UserError.exit_code, str(mistake))


def disk_full_error(error: BaseException) -> UserError | None:
    """Returns the `UserError` for a full disk if that is what went wrong, however a library worded it."""
    seen: BaseException | None = error
    while seen is not None:
        full = isinstance(seen, OSError) and seen.errno in (errno.ENOSPC, errno.EDQUOT)
        short = any(text in str(seen) for text in _TORCH_SHORT_WRITE)
        if full or short or any(text in str(seen) for text in _DISK_FULL_TEXTS):
            name = getattr(seen, "filename", None) or str(seen).splitlines()[0]
            return UserError(
                "The disk is full: torch could not write a file to its end." if short else f"The disk is full: {name}",
                why="What was complete before is still there; the file being written is not.",
                fix="Free some space, or put the run elsewhere with run.folder=DIR.",
            )
        seen = seen.__cause__ or seen.__context__
    return None


def leave_exit_code(code: int, message: str = "") -> None:
    """Tells the command that started the launcher how this process ends; what another one has told stays."""
    if file := os.environ.get(EXIT_CODE_FILE):
        # The disk may be full; the launcher then reports its own code.
        with suppress(OSError), Path(file).open("x", encoding="utf-8") as told:
            told.write(f"{code}\n{message}" if message else str(code))


@dataclass(frozen=True, slots=True)
class Failure:
    """What a process says of its own end, for those who look for the one that failed first.

    Attributes:
        rank: The process.
        time: Seconds since the epoch.
        words: What went wrong.
        stack: Where; empty where that is of no use.
    """

    rank: int
    time: float
    words: str
    stack: str = ""


def leave_failure(words: str, stack: str = "") -> None:
    """Tells the command that started the launcher what this process died of, beside what the others did."""
    if file := os.environ.get(EXIT_CODE_FILE):
        rank = os.environ.get("RANK", "0")
        failure = Failure(int(rank), time.time(), words, stack)
        with suppress(OSError), Path(f"{file}.{rank}").open("w", encoding="utf-8") as told:
            json.dump(asdict(failure), told)


def failures_told(file: Path) -> tuple[Failure, ...]:
    """Returns what `leave_failure` has left beside a file for the exit code."""
    failures = []
    for left in file.parent.glob(f"{file.name}.*"):
        with suppress(OSError, ValueError):  # cut off by a full disk
            failures.append(Failure(**json.loads(left.read_text(encoding="utf-8"))))
    return tuple(sorted(failures, key=lambda failure: failure.time))


def _exit_interrupted() -> NoReturn:
    err.print("Interrupted.")
    _exit(130)


def _exit(code: int, message: str = "") -> NoReturn:
    leave_exit_code(code, message)
    if message:
        leave_failure(message)
    sys.exit(code)
