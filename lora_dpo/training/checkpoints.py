"""Checkpoints on disk: complete or not there. No torch; what is in them is the trainer's matter.

Everything is written into `checkpoints/.partial/`. When all processes are through, `commit` hashes the files, writes
the manifest beside them and renames the folder: from then on there is a `checkpoints/step-N` whose every byte is known.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lora_dpo.console import tracked
from lora_dpo.errors import UserError
from lora_dpo.model.record import MANIFEST

_SCHEMA_VERSION = 3
_HASHING_THREADS = 4


@dataclass(frozen=True, slots=True)
class About:
    """What a checkpoint says of itself.

    Attributes:
        step: Optimizer steps done.
        max_steps: Optimizer steps of the whole training.
        world_size: Processes that wrote it.
        layout: How the optimizer's state lies in it: `replicated`, or divided (`zero3`, `fsdp2`, ...).
        recipe: The resolved recipe.
        recipe_hash: Hash of those of its keys that decide which model comes out.
        data: Hash of each split's pairs.
        origin: What the run began with and the recipe only names: hashes of weights, precision.
        metrics_bytes: Length of metrics.jsonl when it was written.
    """

    step: int
    max_steps: int
    world_size: int
    layout: str
    recipe: dict[str, Any]
    recipe_hash: str
    data: dict[str, str]
    origin: dict[str, str | None]
    metrics_bytes: int


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint that has a manifest; whether its files still are what the manifest says, `damage` tells."""

    path: Path
    about: About
    files: dict[str, tuple[int, str]]

    def damage(self) -> str | None:
        """Returns what is wrong with the files, or None; reads every byte."""
        for name, (size, _) in self.files.items():
            file = self.path / name
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != size:
                return f"{name} has {file.stat().st_size} of {size} bytes"
        hashes = _hashes([self.path / name for name in self.files], "checking the checkpoint")
        for name, found in zip(self.files, hashes, strict=True):
            if found != self.files[name][1]:
                return f"{name} is not what was written"
        return None


def read(path: Path) -> Checkpoint:
    """Returns the checkpoint at `path`.

    Raises:
        UserError: It has no manifest that can be read, so it was never complete or has been damaged.
    """
    file = path / MANIFEST
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if (version := content["schema_version"]) != _SCHEMA_VERSION:
            raise UserError(
                f"{path} was written by another version of lora-dpo.",
                why=f"Its manifest has version {version}; this one reads version {_SCHEMA_VERSION}.",
                fix="Go on with that version, or begin anew with --overwrite.",
            )
        files = {name: (entry["bytes"], entry["sha256"]) for name, entry in content["files"].items()}
        return Checkpoint(path, About(**content["about"]), files)
    except FileNotFoundError:
        why = f"It has no {MANIFEST}, which is written last."
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        why = f"Its {MANIFEST} cannot be read: {error}"
    raise UserError(f"{path} is no complete checkpoint.", why=why, fix="Use another one: run.resume=PATH.")


class Checkpoints:
    """The folder that holds a run's checkpoints.

    Args:
        folder: The run folder's `checkpoints/`.
        keep: Newest ones that are kept; None keeps all. The one just written is always kept.
    """

    def __init__(self, folder: Path, keep: int | None = None) -> None:
        self.folder = folder
        self._keep = keep

    @property
    def partial(self) -> Path:
        """Where the trainer writes."""
        return self.folder / ".partial"

    def place(self, step: int) -> Path:
        """Returns the folder of a step's checkpoint, whether it is there or not."""
        return self.folder / f"step-{step}"

    def steps(self) -> list[int]:
        """Returns the steps that have a folder, damaged ones included, oldest first."""
        found = (re.fullmatch(r"step-(\d+)", path.name) for path in self._entries())
        return sorted(int(match[1]) for match in found if match)

    def newest(self) -> tuple[Checkpoint | None, list[str]]:
        """Returns the newest checkpoint whose every byte is right, and one line for each newer one that is not."""
        damaged = []
        for step in reversed(self.steps()):
            path = self.place(step)
            try:
                checkpoint = read(path)
                damage = checkpoint.damage()
            except UserError as error:
                damage = error.why
            except OSError as error:  # it has just been removed, or the disk does not answer
                damage = str(error)
            if damage is None:
                return checkpoint, damaged
            damaged.append(f"{path} cannot be used: {damage}")
        return None, damaged

    def clear_partial(self) -> None:
        """Removes what a save that was interrupted has left."""
        self.partial.mkdir(parents=True, exist_ok=True)  # the folder itself stays, which other nodes know
        for path in [*self.partial.iterdir(), *self._entries()]:
            if path.parent == self.partial or path.name.startswith(".aside-"):
                shutil.rmtree(path, ignore_errors=True)

    def forget_after(self, step: int) -> None:
        """Removes later checkpoints, of a course that the run goes back behind."""
        for later in self.steps():
            if later > step:
                self._take_away(later)

    def commit(self, written: Path, about: About, best_step: int | None = None) -> Path:
        """Makes what was written a checkpoint, in one rename, and removes those that are no longer kept.

        Args:
            written: Folder inside `partial` that every process has finished writing.
            about: What it is.
            best_step: A step that is kept besides the newest ones.

        Returns:
            The checkpoint.

        Raises:
            OSError: It could not be written; what was there before is still there.
        """
        files = sorted(file for file in written.rglob("*") if file.is_file())
        for file in files:
            _sync(file)
        entries = {
            file.relative_to(written).as_posix(): {"bytes": file.stat().st_size, "sha256": digest}
            for file, digest in zip(files, _hashes(files, "hashing the checkpoint"), strict=True)
        }
        manifest = written / MANIFEST
        content = {"schema_version": _SCHEMA_VERSION, "about": asdict(about), "files": entries}
        manifest.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        _sync(manifest)
        for folder in {file.parent for file in files} | {written}:
            _sync(folder)
        place = self.place(about.step)
        aside = self.folder / f".aside-{place.name}"
        if place.exists():  # damaged, or of a course that was gone back behind; a folder cannot be renamed onto another
            shutil.rmtree(aside, ignore_errors=True)
            place.rename(aside)
        written.rename(place)
        _sync(self.folder)
        shutil.rmtree(aside, ignore_errors=True)
        self.forget_after(about.step)
        self._rotate(about.step, best_step)
        return place

    def finish(self) -> None:
        """Leaves only what is kept when a run is through."""
        shutil.rmtree(self.folder if self._keep == 0 else self.partial, ignore_errors=True)
        if not self._entries():
            shutil.rmtree(self.folder, ignore_errors=True)

    def _rotate(self, newest: int, best: int | None) -> None:
        before = [step for step in self.steps() if step < newest and step != best]
        kept = before if self._keep is None else before[::-1][: max(self._keep - 1, 0)]
        for step in before:
            if step not in kept:
                self._take_away(step)

    def _take_away(self, step: int) -> None:
        doomed = self.folder / f".aside-{self.place(step).name}"
        shutil.rmtree(doomed, ignore_errors=True)
        self.place(step).rename(doomed)  # a half removed one would look like a damaged one
        shutil.rmtree(doomed, ignore_errors=True)

    def _entries(self) -> list[Path]:
        return list(self.folder.iterdir()) if self.folder.is_dir() else []


def _hashes(files: list[Path], label: str) -> Iterator[str]:
    with ThreadPoolExecutor(_HASHING_THREADS) as pool:  # hashing gives the interpreter's lock back
        yield from tracked(pool.map(_sha256, files), label, total=len(files))


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Waits until a file, or a folder's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
