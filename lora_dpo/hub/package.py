"""What is published, file by file: where each is read from, how large it is, and what it must be."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from lora_dpo import __version__
from lora_dpo.model.hashes import content_hash

Kind = Literal["adapter", "model", "dataset"]
CARD = "README.md"
MANIFEST = "manifest.json"
"""Lists the files that lora-dpo has put into a repository, so that the next push knows which are its own."""


@dataclass(frozen=True, slots=True)
class File:
    """One file.

    Attributes:
        path: Its place in the repository.
        size: Bytes.
        sha256: Hash of its content.
        place: The local file that it is read from; None where `content` is all of it.
        content: What was written for the repository, instead of a local file.
    """

    path: str
    size: int
    sha256: str
    place: Path | None = None
    content: bytes | None = None

    @classmethod
    def at(cls, path: str, place: Path) -> File:
        """Returns a local file, which is read once for its hash."""
        return cls(path, place.stat().st_size, content_hash(place), place=place)

    @classmethod
    def of(cls, path: str, content: bytes) -> File:
        """Returns a file that is written for the repository."""
        return cls(path, len(content), hashlib.sha256(content).hexdigest(), content=content)

    def git_sha1(self) -> str:
        """Returns git's hash of the content, by which the Hub knows files that are not large."""
        content = self.read()
        return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()

    def read(self) -> bytes:
        """Returns the content."""
        return self.content if self.content is not None else Path(str(self.place)).read_bytes()


@dataclass(frozen=True, slots=True)
class Package:
    """What is published together.

    Attributes:
        kind: What it is.
        files: The files, in the order of their names.
        left_out: Local files that do not travel.
        remarks: What the user should know before it is published, a sentence each.
        base: Hub id of the base model, which the Hub must have; None where the card names none.
        overwrites_card: Whether its card may take the place of one that somebody has written on the Hub.
    """

    kind: Kind
    files: list[File]
    left_out: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    base: str | None = None
    overwrites_card: bool = False

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    @property
    def repo_type(self) -> str:
        """What the Hub calls such a repository."""
        return "dataset" if self.kind == "dataset" else "model"


def with_manifest(files: Iterable[File]) -> list[File]:
    """Returns the files and their manifest, in the order of their names."""
    listed = sorted(files, key=lambda file: file.path)
    content = {
        "schema_version": 1,
        "made_by": f"lora-dpo {__version__}",
        "files": {file.path: {"size": file.size, "sha256": file.sha256} for file in listed},
    }
    manifest = File.of(MANIFEST, (json.dumps(content, indent=1) + "\n").encode())
    return sorted([*listed, manifest], key=lambda file: file.path)
