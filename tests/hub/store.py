"""Repositories of the local Hub, on disk: commits, branches, tags, and objects by their content."""

from __future__ import annotations

import hashlib
import json
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LFS_SUFFIXES = (".safetensors", ".bin", ".parquet", ".arrow", ".gguf", ".png", ".model")
LFS_BYTES = 10_000_000
_ATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES).encode()


class Refused(Exception):  # noqa: N818 - an answer, not a fault of the server
    """An answer other than what was asked for: status, the Hub's error code, and a sentence."""

    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


@dataclass(frozen=True)
class Entry:
    """A file of a commit; `sha256` only of one that is stored as LFS."""

    oid: str
    size: int
    sha256: str | None = None

    def as_json(self, path: str) -> dict[str, Any]:
        """Returns it as the Hub's tree lists it."""
        entry: dict[str, Any] = {"type": "file", "path": path, "size": self.size, "oid": self.oid}
        if self.sha256 is not None:
            entry["lfs"] = {"oid": self.sha256, "size": self.size, "pointerSize": 134}
        return entry


class Repository:
    """One repository: a folder with `state.json`, `blobs/` by git's SHA-1, and `lfs/` by SHA-256."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state: dict[str, Any] = {}
        if (folder / "state.json").is_file():
            self.state = json.loads((folder / "state.json").read_text())

    @property
    def exists(self) -> bool:
        return bool(self.state)

    def create(self, *, private: bool) -> None:
        """Makes it, with the commit that the Hub begins every repository with."""
        self.state = {"private": private, "branches": {}, "tags": {}, "commits": {}}
        self.commit("main", "initial commit", {".gitattributes": self.put_blob(_ATTRIBUTES)}, parent=None)

    def head(self, revision: str) -> str:
        """Returns the commit that a branch, a tag or a commit's own name stands for."""
        state = self.state
        found = state["branches"].get(revision) or state["tags"].get(revision)
        if found is None and revision in state["commits"]:
            found = revision
        if found is None:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return found

    def files(self, revision: str) -> dict[str, Entry]:
        """Returns the files of a commit by path."""
        commit = self.state["commits"][self.head(revision)]
        return {path: Entry(**entry) for path, entry in commit["files"].items()}

    def log(self, revision: str) -> list[dict[str, Any]]:
        """Returns the commits of a branch, the newest one first."""
        found, oid = [], self.head(revision)
        while oid is not None:
            commit = self.state["commits"][oid]
            found.append({"id": oid, "title": commit["title"], "message": "", "authors": [], "date": commit["date"]})
            oid = commit["parent"]
        return found

    def commit(self, branch: str, title: str, files: dict[str, Entry], parent: str | None) -> str:
        """Makes a commit and moves a branch to it, in one rename."""
        entries = {path: vars(entry) for path, entry in files.items()}
        content = {"parent": parent, "title": title, "files": entries, "date": "2026-01-01T00:00:00.000Z"}
        oid = hashlib.sha1(json.dumps([content, str(self.folder)], sort_keys=True).encode()).hexdigest()
        self.state["commits"][oid] = content
        self.state["branches"][branch] = oid
        self.save()
        return oid

    def save(self) -> None:
        """Writes the state whole."""
        self._write(self.folder / "state.json", json.dumps(self.state).encode())

    def put_blob(self, content: bytes) -> Entry:
        """Stores a small file."""
        oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        self._write(self.folder / "blobs" / oid, content)
        return Entry(oid, len(content))

    def put_lfs(self, sha256: str, content: bytes) -> None:
        """Stores a large file under the name that it was announced by."""
        self._write(self.lfs_path(sha256), content)

    def lfs_path(self, sha256: str) -> Path:
        return self.folder / "lfs" / sha256

    def lfs_entry(self, sha256: str, size: int) -> Entry:
        """Returns the entry of a large file that has arrived."""
        path = self.lfs_path(sha256)
        if not path.is_file() or path.stat().st_size != size:
            raise Refused(422, f"LFS object {sha256} is not here")
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
        return Entry(hashlib.sha1(b"blob %d\0" % len(pointer) + pointer).hexdigest(), size, sha256)

    def read(self, entry: Entry) -> bytes:
        path = self.folder / "blobs" / entry.oid if entry.sha256 is None else self.lfs_path(entry.sha256)
        return path.read_bytes()

    @staticmethod
    def _write(path: Path, content: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
        partial.write_bytes(content)
        partial.rename(path)


def is_lfs(path: str, size: int) -> bool:
    """Returns whether the Hub would store a file as LFS."""
    return size > 0 and (path.endswith(LFS_SUFFIXES) or size > LFS_BYTES)
