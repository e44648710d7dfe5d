"""The folder of a merged model: begun beside its place, a model only once it has a config.json, renamed at the end."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lora_dpo.errors import UserError
from lora_dpo.files import check_can_be_made, partial_path, remove, write_json
from lora_dpo.model.record import RECORD
from lora_dpo.model.weights import weight_files

INDEX = "model.safetensors.index.json"
_CONFIG = "config.json"
_LOCK = ".lock"
_SPARE_BYTES = 2**26
"""For tokenizer, configuration and report."""
_LEFT_BEHIND = {_CONFIG, RECORD, "README.md", "README.txt", "adapter_config.json", "merge_report.json"}
_TRAVELS = {".json", ".jinja", ".model", ".txt", ".py", ".tiktoken"}
_LEGAL = {"LICENSE", "LICENCE", "NOTICE", "USE_POLICY"}
_TOKENIZER = (
    *("tokenizer*", "chat_template*", "special_tokens_map.json", "added_tokens.json"),
    *("vocab*", "merges.txt", "spiece.model", "*.tiktoken"),
)
_NOT_WRITTEN = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def check_free(target: Path) -> None:
    """Checks that a model may be written here.

    Raises:
        UserError: Something is here already, or nothing can be made here.
    """
    fix = "Give an empty or a new folder with -o."
    if not target.name:
        raise UserError(f"{target} is the current folder, which cannot be made anew.", fix=fix)
    if target.is_symlink():  # the finished folder could not be renamed onto it
        raise UserError(f"{target} is a link, which cannot become a folder.", fix=fix)
    if os.path.lexists(target) and not (target.is_dir() and not any(target.iterdir())):
        raise UserError(f"{target} is there already, and nothing in it was touched.", fix=fix)
    check_can_be_made(target, fix)


def check_room(target: Path, needed: int) -> None:
    """Checks that the disk has room.

    Args:
        target: Where the model goes; its parent exists.
        needed: Bytes of its weights.

    Raises:
        UserError: It has not.
    """
    free = shutil.disk_usage(target.parent).free
    if free < needed + _SPARE_BYTES:
        raise _no_room(f"{needed / 1e9:.2f} GB are needed at {target}, and {free / 1e9:.2f} GB are free.")


@contextmanager
def written_aside(target: Path) -> Iterator[Path]:
    """Yields an empty folder that gets its name when all went well, and is removed otherwise.

    What a killed process has left there is removed by the next one.

    Args:
        target: Its name.

    Raises:
        UserError: Another process writes there, or the disk is full.
    """
    partial = partial_path(target)
    partial.mkdir(parents=True, exist_ok=True)
    lock = FileLock(partial / _LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"Another process is merging into {target}.", fix="Wait for it.") from None
    try:
        for leftover in partial.iterdir():
            if leftover.name != _LOCK:
                remove(leftover)
        yield partial
        partial.rename(target)  # with the lock: nobody may take it and clear the folder before it has its name
        (target / _LOCK).unlink()
    except BaseException as error:
        remove(partial)
        if isinstance(error, OSError) and error.errno in _NOT_WRITTEN:
            raise _no_room(f"A file could not be written to its end: {error.strerror}.") from error
        raise
    finally:
        lock.release()


def shards_of(folder: Path, name: str) -> list[Path]:
    """Returns the files with a model's weights, in order.

    Args:
        folder: The model's folder.
        name: What the user calls it.

    Raises:
        UserError: There are no safetensors files, or a configuration of quantised weights.
    """
    config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
    if "quantization_config" in config:
        kind = config["quantization_config"].get("quant_method", "quantised")
        raise UserError(
            f"The weights of {name} are saved quantised ({kind}).",
            why="An adapter is merged into the weights that they were made of.",
            fix="Give that model with --base NAME.",
        )
    files = weight_files(folder)
    if files and all(file.suffix == ".safetensors" for file in files):
        return files
    raise UserError(
        f"The model {name} has no safetensors files.",
        why="Others cannot be read piece by piece.",
        fix="Save it again: AutoModelForCausalLM.from_pretrained(NAME).save_pretrained(FOLDER), and use --base FOLDER.",
    )


def copy_companions(base: Path, target: Path, tokenizer: Path, *, same_tokens: bool) -> None:
    """Copies what is not weights: tokenizer, chat template, generation settings, licence, the model's own code.

    Args:
        base: The base model's folder.
        target: Where to.
        tokenizer: The folder whose tokenizer counts.
        same_tokens: Whether its tokens are the base's, so that files which only the base has still hold.
    """
    for file in base.iterdir():
        travels = file.suffix in _TRAVELS or file.stem.upper() in _LEGAL
        left = file.name in _LEFT_BEHIND or file.name.endswith(".index.json")
        if file.is_file() and travels and not left and (same_tokens or not _is_tokenizer_s(file)):
            shutil.copyfile(file, target / file.name)
    for file in tokenizer.iterdir():
        if _is_tokenizer_s(file):
            shutil.copyfile(file, target / file.name)


def write_index(target: Path, places: dict[str, str], total: int) -> None:
    """Says which tensor is in which file.

    Args:
        target: The model's folder.
        places: The file of each tensor.
        total: Bytes of all tensors.
    """
    write_json(target / INDEX, {"metadata": {"total_size": total}, "weight_map": places})


def write_config(base: Path, target: Path, dtype: str | None) -> None:
    """Writes the configuration, by which the folder becomes a model that can be loaded.

    Args:
        base: The base model's folder.
        target: The merged one's.
        dtype: The weights' precision; None leaves what the base says.
    """
    config: dict[str, Any] = json.loads((base / _CONFIG).read_text(encoding="utf-8"))
    if dtype is not None:
        config.pop("torch_dtype", None)  # its name in older versions
        config["dtype"] = dtype
    write_json(target / _CONFIG, config)


def _is_tokenizer_s(file: Path) -> bool:
    return file.is_file() and any(file.match(pattern) for pattern in _TOKENIZER)


def _no_room(what: str) -> UserError:
    return UserError(what, why="Nothing was left behind.", fix="Free some space, or write elsewhere with -o DIR.")
