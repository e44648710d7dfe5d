"""A file of JSON lines that several processes append to at once, and that nothing loses a whole line of."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from lora_dpo.console import note
from lora_dpo.errors import UserError
from lora_dpo.inference.answers_file import check_place

Line = dict[str, Any]

_TAIL_BYTES = 256
"""The end of what was read is compared, to know whether a file is still the one that was read."""


class LineFile:
    """An append-only file of JSON objects, one a line; each is on the disk before `append` returns.

    What other processes append is seen by `refresh`. A last line that a killed process has left unfinished is moved
    into `NAME.torn`.

    Args:
        path: Where it is; its folder is made with the first line.

    Attributes:
        lines: The lines that were there at the last `refresh`.

    Raises:
        UserError: There can be no such file, or a line of it is no JSON object.
    """

    def __init__(self, path: Path) -> None:
        check_place(path)
        self.path = path
        self.lines: list[Line] = []
        self._guard = threading.RLock()
        self._forget()
        self.refresh()

    def refresh(self) -> None:
        """Brings `lines` up to date with what was added, by whomever."""
        with self._guard:
            try:
                with self.path.open("rb") as file:
                    file.seek(self._seen - len(self._tail))
                    if file.read(len(self._tail)) != self._tail:  # another file, or edited by hand
                        self._forget()
                        file.seek(0)
                    added = file.read()
            except FileNotFoundError:
                self._forget()
                return
            whole = added[: added.rfind(b"\n") + 1]
            parts = whole.split(b"\n")[:-1]
            self.lines += [
                self._parsed(raw, number) for number, raw in enumerate(parts, self._count + 1) if raw.strip()
            ]
            self._seen, self._count = self._seen + len(whole), self._count + len(parts)
            self._tail = (self._tail + whole)[-_TAIL_BYTES:]

    def append(self, line: Line, unless: Callable[[], bool] = lambda: False) -> bool:
        """Adds a line and waits until it is on the disk.

        Args:
            line: The line.
            unless: Asked while no other process may append, after `refresh`: then nothing is added.

        Returns:
            Whether it was added.
        """
        content = json.dumps(line, ensure_ascii=False).encode("utf-8", errors="replace") + b"\n"
        with self._guard, self._alone():
            self._heal()
            self.refresh()
            if unless():
                return False
            is_new = not self.path.exists()
            with self.path.open("ab", buffering=0) as file:
                before = os.fstat(file.fileno()).st_size
                try:
                    left = memoryview(content)
                    while left:
                        left = left[file.write(left) :]
                    os.fsync(file.fileno())
                except OSError:  # a full disk must not leave half a line
                    file.truncate(before)
                    raise
            if is_new:
                _sync_folder(self.path.parent)
            self.refresh()
            return True

    def _forget(self) -> None:
        self.lines.clear()
        self._seen = self._count = 0
        self._tail = b""

    @contextmanager
    def _alone(self) -> Iterator[None]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # A lock of its own a call: it is then one between threads as well.
        with FileLock(self.path.with_name(f".{self.path.name}.lock")):
            yield

    def _heal(self) -> None:
        """Takes away, or completes, a last line without a line break; nobody else is writing."""
        if not self.path.exists():
            return
        with self.path.open("r+b") as file:
            size = file.seek(0, os.SEEK_END)
            if size == 0:
                return
            file.seek(size - 1)
            if file.read(1) == b"\n":
                return
            file.seek(0)
            content = file.read()
            start = content.rfind(b"\n") + 1
            torn = content[start:]
            if _is_object(torn):
                file.write(b"\n")
                return
            with self.path.with_name(f"{self.path.name}.torn").open("ab") as aside:
                aside.write(torn + b"\n")
            file.truncate(start)
        note(f"The last line of {self.path} was not written to its end; its {len(torn)} bytes are in {aside.name} now.")

    def _parsed(self, raw: bytes, number: int) -> Line:
        if _is_object(raw):
            return json.loads(raw)
        raise UserError(
            "this line is no JSON object, so the file is not one that lora-dpo collects preferences in",
            fix="Name another file: --output FILE; or mend this line.",
            where=f"{self.path}, line {number}",
        )


def _is_object(raw: bytes) -> bool:
    try:
        return isinstance(json.loads(raw), dict)
    except (ValueError, RecursionError):
        return False


def _sync_folder(folder: Path) -> None:
    """Makes sure that a new file's name survives a power cut as well."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
