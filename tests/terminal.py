"""A process on a terminal of its own, as a person has it before them."""

from __future__ import annotations

import codecs
import os
import pty
import re
import select
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.process import PATIENCE, ROOT, wait_until

_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


class Screen:
    """A process on a terminal of 80 x 24."""

    def __init__(self, process: subprocess.Popen[bytes], controller: int) -> None:
        self.process = process
        self.raw = self.shown = ""
        self._controller = controller
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def type(self, keys: str) -> None:
        os.write(self._controller, keys.encode())

    def wait_for_keys(self) -> None:
        """Waits until single keys are read: those that come before are forgotten, or wait for the end of a line."""
        wait_until(lambda: not termios.tcgetattr(self._controller)[3] & termios.ICANON, 0.001)

    def wait_for(self, text: str, *, since: int = 0) -> int:
        """Reads until a text is shown; returns the place after it."""
        while (place := self.shown.find(text, since)) < 0:
            ready, _, _ = select.select([self._controller], [], [], PATIENCE)
            try:
                new = os.read(self._controller, 4096) if ready else b""
            except OSError:  # the process has closed the terminal
                new = b""
            assert new, f"{text!r} did not come:\n{self.shown}"
            self.raw += self._decoder.decode(new)
            self.shown = _ESCAPE.sub("", self.raw).replace("\r\n", "\n")
        return place + len(text)


@contextmanager
def terminal(cwd: Path, *words: str, **environment: str) -> Iterator[Screen]:
    """Starts `lora-dpo WORDS` in a terminal of its own."""
    controller, own = pty.openpty()
    env = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "TERM": "xterm-256color",
        "COLUMNS": "80",
        "LINES": "24",
        **environment,
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "lora_dpo", *words],
        cwd=cwd, env=env, stdin=own, stdout=own, stderr=own, start_new_session=True,
        preexec_fn=lambda: os.close(os.open(os.ttyname(0), os.O_RDWR)),  # makes it the session's terminal: Ctrl-C
    )  # fmt: skip
    os.close(own)
    try:
        yield Screen(process, controller)
    finally:
        process.kill()
        process.wait()
        os.close(controller)
