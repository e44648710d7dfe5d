"""Hashes of a model's files, which are large: each is read once as long as it does not change."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lora_dpo.console import tracked
from lora_dpo.errors import UserError
from lora_dpo.files import write_whole
from lora_dpo.model.cache import cache_folder
from lora_dpo.model.weights import ADAPTER_CONFIG, MODEL_CONFIG, weight_files

_NO_MEANING = {
    *("transformers_version", "dtype", "torch_dtype", "use_cache", "auto_map"),
    *("base_model_name_or_path", "revision", "inference_mode", "peft_version", "auto_mapping", "runtime_config"),
}
"""Keys of configurations that say where and by what a model was saved or is loaded, and not what it computes."""
_SETS = {"target_modules", "modules_to_save", "exclude_modules"}
"""Keys whose values PEFT writes in any order."""
_SETTLED_NS = 2_000_000_000
"""A file that changed more recently may change again within one tick of the file system's clock."""


def weights_hash(path: str, revision: str | None, also: Sequence[str] = ()) -> str | None:
    """Returns one SHA-256 over the names and hashes of the files that weights are loaded from.

    Args:
        path: Local folder or Hub id of a model or an adapter; of the Hub only the local cache is asked.
        revision: Hub revision.
        also: Patterns of further files that count.

    Returns:
        The hash, or None where the weights are not here.

    Raises:
        UserError: A file of a local folder is missing, or its index cannot be read.
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
    """Returns the SHA-256 of each file that weights are loaded from, by name; see `weights_hash`."""
    folder = _folder(path, revision)
    weights = weight_files(folder) if folder is not None else []
    if folder is None or not weights:
        return None
    if missing := [file.name for file in weights if not file.is_file()]:
        if not Path(path).expanduser().is_dir():
            return None
        raise UserError(
            f"{path} has no {missing[0]}, in which a part of the weights is to be.", fix="Copy it again, all its files."
        )
    files = sorted({*weights, *(file for pattern in also for file in folder.glob(pattern))})
    return {file.name: file_hash(file) for file in tracked(files, "hashing the model's files")}


def config_hash(folder: Path) -> str | None:
    """Returns the SHA-256 of what a configuration says of how weights are used, such as `lora_alpha`.

    Args:
        folder: Folder of an adapter or a model.

    Returns:
        The hash, which no path, precision or version changes; None where there is no configuration that can be read.
    """
    file = next((folder / name for name in (ADAPTER_CONFIG, MODEL_CONFIG) if (folder / name).is_file()), None)
    if file is None:
        return None
    try:
        meaning = _meaning(json.loads(file.read_text(encoding="utf-8")))
    except ValueError:  # what loads it says it in words
        return None
    return hashlib.sha256(json.dumps(meaning, sort_keys=True).encode()).hexdigest()


def _meaning(part: Any) -> Any:
    if not isinstance(part, dict):
        return part
    kept = {key: value for key, value in part.items() if key not in _NO_MEANING and not key.startswith("_")}
    return {
        key: sorted(value, key=str) if key in _SETS and isinstance(value, list) else _meaning(value)
        for key, value in kept.items()
    }


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
