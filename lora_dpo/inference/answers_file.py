"""A file of answers that grows by whole lines, and goes on where it stopped if it is asked for the same."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from lora_dpo.errors import UserError
from lora_dpo.files import check_can_be_made, write_json

_SHOWN = 40
"""Characters of a value that a message shows."""
_NAMES = ("input", "model")
"""What only says where something was; hashes say whether it is the same."""


@dataclass(slots=True)
class AnswersFile:
    """An open file of answers, one JSON object a line, in the order of the prompts.

    Attributes:
        count: How many answers it holds.
    """

    count: int
    _stream: BinaryIO

    def append(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Writes further answers; a process that is killed leaves whole lines and at most a part of one."""
        text = "".join(json.dumps(line, ensure_ascii=False, default=str) + "\n" for line in lines)
        self._stream.write(text.encode())
        self._stream.flush()
        self.count += len(lines)


@contextmanager
def open_answers(path: Path, settings: Mapping[str, Any], *, overwrite: bool) -> Iterator[AnswersFile]:
    """Opens a new file of answers, or one that is to go on.

    What the answers depend on is written beside it, into `NAME.settings.json`, before there is the first one.

    Args:
        path: Where the answers go.
        settings: All that they depend on; `count` is how many there will be, and `input` and
            `model` only say where they were.
        overwrite: Replace a file that is there.

    Raises:
        UserError: Something else is there, answers to other prompts or settings among it, or another process writes it.
    """
    check_place(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"Another process is writing {path}.", fix="Wait for it, or name another --output.") from None
    try:
        if overwrite:
            path.unlink(missing_ok=True)
        count = _whole_lines(path, settings) if path.exists() else 0
        write_json(settings_file(path), dict(settings))
        with path.open("ab") as stream:
            yield AnswersFile(count, stream)
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)  # while it is held: afterwards it may be another's
        lock.release()


def check_place(path: Path) -> None:
    """Makes sure that a file can be written here.

    Raises:
        UserError: It cannot.
    """
    fix = "Name another file: --output FILE."
    if path.is_dir():
        raise UserError(f"{path} is a folder, so answers cannot be written to it.", fix=fix)
    check_can_be_made(path, fix)


def settings_file(path: Path) -> Path:
    """Returns where the settings of a file of answers stand."""
    return path.with_name(f"{path.name}.settings.json")


def _whole_lines(path: Path, settings: Mapping[str, Any]) -> int:
    """Checks a file that is there, and cuts off a line that a killed process has left unfinished."""
    _check_same(path, settings)
    content = path.read_bytes()
    end = content.rfind(b"\n") + 1
    indices = []
    for number, line in enumerate(content[:end].split(b"\n")[:-1], start=1):
        try:
            indices.append(json.loads(line)["index"])
        except (ValueError, KeyError, TypeError):
            raise _changed(path, f"line {number} is no answer") from None
    if indices != list(range(len(indices))) or len(indices) > settings["count"]:
        raise _changed(path, f"its {len(indices)} lines are not the first of {settings['count']} answers, in order")
    os.truncate(path, end)
    return len(indices)


def _check_same(path: Path, settings: Mapping[str, Any]) -> None:
    try:
        known = json.loads(settings_file(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(
            f"{path} is there already, and nothing in it was touched.",
            why=f"There is no {settings_file(path).name} beside it, so it is not known to hold answers like these.",
            fix="Name another --output, or replace it with --overwrite.",
        ) from None
    differing = [name for name in settings if name not in _NAMES and known.get(name) != settings[name]]
    if "weights_sha256" in differing and known.get("model") != settings["model"]:
        differing.insert(0, "model")  # its name says more than its hash
    if differing:
        raise UserError(
            f"{path} holds answers that were asked for otherwise, so it cannot go on with these.",
            why="\n".join(
                f"{name}: {_shown(known.get(name))} there, {_shown(settings[name])} now" for name in differing
            ),
            fix="Take the old values to go on, name another --output, or replace it with --overwrite.",
        )


def _changed(path: Path, why: str) -> UserError:
    return UserError(
        f"{path} has been changed since it was written: {why}.",
        fix="Name another --output, or replace it with --overwrite.",
    )


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."
