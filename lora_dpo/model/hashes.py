"""Hashes of a model's files, which are large: each is read once as long as it does not change."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from lora_dpo.console import tracked
from lora_dpo.files import write_whole
from lora_dpo.model.cache import cache_folder

_WEIGHTS = ("*.safetensors", "*.bin")
_SETTLED_NS = 2_000_000_000
"""A file that changed more recently may change again within one tick of the file system's clock."""


def weights_hash(path: str, revision: str | None, also: Sequence[str] = ()) -> str | None:
    """Returns one SHA-256 over the names and hashes of the weight files of a model or an adapter.

    Args:
        path: Local folder or Hub id.
        revision: Hub revision.
        also: Patterns of further files that count.

    Returns:
        The hash, or None where no weight file is found.
    """
    hashes = file_hashes(path, revision, also)
    return None if hashes is None else hash_over(hashes)


def hash_over(hashes: Mapping[str, str]) -> str:
    """Returns one SHA-256 over files' names and hashes."""
    whole = hashlib.sha256()
    for name, digest in sorted(hashes.items()):
        whole.update(f"{name} {digest}\n".encode())
    return whole.hexdigest()


def file_hashes(path: str, revision: str | None, also: Sequence[str] = ()) -> dict[str, str] | None:
    """Returns the SHA-256 of each weight file of a model or an adapter, by name; see `weights_hash`."""
    folder = _folder(path, revision)
    weights = [file for pattern in _WEIGHTS for file in folder.glob(pattern)] if folder is not None else []
    if folder is None or not weights:
        return None
    files = sorted({*weights, *(file for pattern in also for file in folder.glob(pattern))})
    return {file.name: file_hash(file) for file in tracked(files, "hashing the model's files")}


def file_hash(file: Path) -> str:
    """Returns a file's SHA-256. The Hub's cache names large files by their hash, so these are not read.

    Args:
        file: The file.
    """
    return hub_hash(file) or content_hash(file)


def hub_hash(file: Path) -> str | None:
    """Returns the hash that the Hub's cache names a large file by; None for other files."""
    target = file.resolve()
    return target.name if file.is_symlink() and len(target.name) == 64 else None


def content_hash(file: Path) -> str:
    """Returns the SHA-256 of what is in a file.

    It is kept in lora-dpo's cache, together with the file's size and times.

    Args:
        file: The file.
    """
    target = file.resolve()
    stat = target.stat()
    state = [stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns]
    memory = cache_folder() / "hashes" / f"{hashlib.sha256(str(target).encode()).hexdigest()}.json"
    with suppress(OSError, ValueError, KeyError, TypeError):  # not there, or damaged: the file is read
        known = json.loads(memory.read_text(encoding="utf-8"))
        if known["state"] == state:
            return str(known["sha256"])
    with target.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if time.time_ns() - max(stat.st_mtime_ns, stat.st_ctime_ns) > _SETTLED_NS:
        with suppress(OSError):  # a cache that cannot be written only costs time
            write_whole(
                memory, json.dumps({"file": str(target), "state": state, "sha256": digest}).encode(), shared=True
            )
    return digest


def _folder(path: str, revision: str | None) -> Path | None:
    """Returns where the files are; None where there are none, as of a model that was made in memory."""
    if not path:
        return None
    if (folder := Path(path).expanduser()).is_dir():
        return folder
    from transformers.utils import cached_file  # slow to import, and not needed for folders

    for name in ("config.json", "adapter_config.json"):
        with suppress(OSError, ValueError):  # not in the Hub's cache, or no name that the Hub could have
            return Path(cached_file(path, name, revision=revision or "main", local_files_only=True)).parent
    return None
