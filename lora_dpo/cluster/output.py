"""What the processes of a job print: into a log and on to the job's output, and no matter when neither takes it."""

from __future__ import annotations

import os
import threading
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, TextIO

_KEPT_LINES = 200
_CHUNK_BYTES = 65536


class Output:
    """Reads a pipe to its end, whatever becomes of the places that it passes the text on to.

    A training must not die, nor wait, because the disk of a log is full: what cannot be written is dropped, and what
    comes later is tried again. The last lines are kept in memory, so that a failure can be told of all the same.

    Args:
        log: File that gets everything; None for none.
        onward: File descriptor that gets it too; None for none.
    """

    def __init__(self, log: Path | None, onward: int | None = None) -> None:
        self._log, self._onward = log, onward
        self._last: deque[bytes] = deque(maxlen=_KEPT_LINES)
        self._file: BinaryIO | None = None
        self._thread: threading.Thread | None = None

    def read_from(self, pipe: BinaryIO) -> None:
        """Begins to read, in a thread of its own."""
        self._thread = threading.Thread(target=self._pass_on, args=(pipe,), name="output", daemon=True)
        self._thread.start()

    def write(self, text: str) -> None:
        """Passes on a text of this process's own."""
        self._write(text.encode())

    def finish(self, seconds: float = 10.0) -> None:
        """Waits until all has been read; not for ever, since a process that was left behind may hold the pipe."""
        if self._thread is not None:
            self._thread.join(seconds)

    @property
    def last_lines(self) -> list[str]:
        """The last lines that were read."""
        return [line.decode(errors="replace") for line in list(self._last)]

    def _pass_on(self, pipe: BinaryIO) -> None:
        rest = b""
        while chunk := os.read(pipe.fileno(), _CHUNK_BYTES):
            self._write(chunk)
            *lines, rest = (rest + chunk).split(b"\n")
            self._last.extend(lines)
            rest = rest[-_CHUNK_BYTES:]
        if rest:
            self._last.append(rest)

    def _write(self, chunk: bytes) -> None:
        if self._log is not None:
            try:
                if self._file is None:
                    self._log.parent.mkdir(parents=True, exist_ok=True)
                    self._file = self._log.open("ab", buffering=0)
                self._file.write(chunk)
            except OSError:
                self._file = None  # is opened again with the next text
        if self._onward is not None:
            with suppress(OSError):
                os.write(self._onward, chunk)


class Unfailing:
    """A text stream that drops what it cannot write, for a process whose output is a log on a disk that may be full.

    Args:
        stream: Where it goes.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes the text, or not."""
        with suppress(OSError):
            self._stream.write(text)
            self._stream.flush()
        return len(text)

    def flush(self) -> None:
        """Does nothing: `write` has done so."""

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)
