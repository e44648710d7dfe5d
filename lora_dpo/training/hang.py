"""A process that no longer gets on: every process says where it stands, and the run ends instead of waiting."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.text import Text

from lora_dpo.console import err, leave_failure

_LOOKS_EACH_SECONDS = 1.0
_OTHERS_SPEAK_WITHIN_SECONDS = 15.0
_EXIT_CODE = 1


class HangWatch:
    """Ends the process, with the stacks of its threads, when `beat` has not been called for too long.

    A collective waits for the slowest process, so when one hangs, all of them come here within a second or two, and the
    one whose stack is not in a collective is the one to look at. The first to end would break the collective of the
    others, and the launcher would end them before they have said where they stand; so each waits a little for the rest.

    Args:
        seconds: The longest time between two beats.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._last: float | None = None
        self._watches = False

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watches the block, from its first beat on."""
        over = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(over,), name="hang-watch", daemon=True)
        self._watches = True
        watcher.start()
        try:
            yield
        finally:
            over.set()
            self._watches, self._last = False, None
            faulthandler.cancel_dump_traceback_later()

    def beat(self) -> None:
        """Says that the process gets on; does nothing outside of `watching`."""
        if not self._watches:
            return
        self._last = time.monotonic()
        # The thread below cannot run while native code holds the interpreter; this one can, but has no words.
        most = self._seconds + 10 * _LOOKS_EACH_SECONDS + _OTHERS_SPEAK_WITHIN_SECONDS * _has_others()
        faulthandler.dump_traceback_later(most, exit=True, file=sys.__stderr__)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Does not watch inside of the block, which may take as long as it takes."""
        self._last = None
        faulthandler.cancel_dump_traceback_later()
        try:
            yield
        finally:
            self.beat()

    def _watch(self, over: threading.Event) -> None:
        while not over.wait(_LOOKS_EACH_SECONDS):
            last = self._last
            if last is not None and time.monotonic() - last > self._seconds:
                self._end()

    def _end(self) -> None:
        rank = os.environ.get("RANK", "0")
        words = (
            f"[rank {rank}] Error: no micro-batch has ended for {self._seconds:g} seconds (train.hang_timeout). "
            "One process hangs: the one whose stack does not wait for the others. The stack of this one:"
        )
        err.print(Text(words), soft_wrap=True)
        leave_failure(words)
        faulthandler.dump_traceback(file=sys.__stderr__)
        sys.__stderr__.flush()
        time.sleep(_OTHERS_SPEAK_WITHIN_SECONDS * _has_others())
        os._exit(_EXIT_CODE)


def _has_others() -> bool:
    return int(os.environ.get("WORLD_SIZE", "1")) > 1
