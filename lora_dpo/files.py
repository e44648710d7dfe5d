"""Files and folders that are whole under their name, or not there."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from pathlib import Path
from typing import Any

from lora_dpo.errors import UserError


def partial_path(path: Path) -> Path:
    """Returns where a file or folder is written before it is renamed to `path`."""
    return path.with_name(f".{path.name}.partial")


def write_whole(path: Path, content: bytes, *, shared: bool = False) -> None:
    """Writes a file whole or not at all; its folder is made.

    Args:
        path: Where it goes.
        content: What it holds.
        shared: Other processes, on whatever machine, may be writing the same file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial") if shared else partial_path(path)
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes text whole or not at all."""
    write_whole(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Writes a value as indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def replace_folder(partial: Path, target: Path) -> None:
    """Renames a folder that is whole to its place, where an earlier one may be."""
    aside = target.with_name(f".{target.name}.aside")
    remove(aside)
    if target.exists():  # a folder cannot be renamed onto another
        target.rename(aside)
    partial.rename(target)
    remove(aside)


def check_can_be_made(path: Path, fix: str) -> None:
    """Makes sure that a file or a folder can be made here, or the file that is here be written.

    Args:
        path: Its place.
        fix: What the user is to do otherwise.

    Raises:
        UserError: It cannot.
    """
    folder = next(place for place in path.absolute().parents if os.path.lexists(place))
    if not folder.is_dir():
        raise UserError(f"{folder} is a file, so there can be no {path} in it.", fix=fix)
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise UserError(f"{path} may not be written.", fix=fix)


def remove(path: Path) -> None:
    """Removes a file, a folder with all that is in it, or nothing."""
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
