"""Which files the weights of a model or an adapter are loaded from, and how those of the Hub come here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from lora_dpo.errors import UserError
from lora_dpo.hub_errors import hub_is_offline, not_in_cache
from lora_dpo.model.location import find_file, local_copy
from lora_dpo.model.record import RECORD

ADAPTER_CONFIG, MODEL_CONFIG = "adapter_config.json", "config.json"
_ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
_MODEL_FILES = ("model.safetensors", "pytorch_model.bin")
"""What is loaded of several, first: as Transformers looks for them, and PEFT for an adapter's."""


def weight_files(folder: Path) -> list[Path]:
    """Returns the files that a model's or an adapter's weights are loaded from, whether all of them are there or not.

    A repository may hold the same weights twice (`consolidated.safetensors`, `pytorch_model.bin`), and files of other
    kinds that end alike (`training_args.bin`).

    Args:
        folder: Its folder.

    Returns:
        The files in order; none where there are no weights.

    Raises:
        UserError: An index cannot be read.
    """
    for name in _names(folder):
        if (folder / name).is_file():
            return [folder / name]
        if (index := folder / _index(name)).is_file():
            return [folder / part for part in _parts(index)]
    return []


def fetched(place: str, revision: str | None) -> Path:
    """Returns the folder with the weights of a model or an adapter, its configuration and its record.

    What is on the Hub is fetched where it is not here, all of one commit: what is not here cannot be compared.

    Args:
        place: Local folder or Hub id.
        revision: Branch, tag or commit; None is the default branch.

    Raises:
        UserError: There is no such repository, this token may not read it, or a file is not in the local cache and the
            Hub cannot be reached.
    """
    folder = Path(place).expanduser()
    if folder.is_dir():
        return folder
    folder = local_copy(place, revision, (MODEL_CONFIG, ADAPTER_CONFIG, RECORD))
    commit = folder.name
    for name in _names(folder):
        if find_file(place, name, commit) is not None:
            return folder
        if (index := find_file(place, _index(name), commit)) is not None:
            local_copy(place, commit, _parts(index))
            if all(file.is_file() for file in weight_files(folder)):
                return folder
            break
    if hub_is_offline():
        raise not_in_cache(place)
    return folder


def _names(folder: Path) -> Iterator[str]:
    if (folder / ADAPTER_CONFIG).is_file():
        yield from _ADAPTER_FILES
    yield from _MODEL_FILES


def _index(name: str) -> str:
    return f"{name}.index.json"


def _parts(index: Path) -> list[str]:
    try:
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"the file does not say where the weights are ({type(error).__name__}: {error})",
            fix="Download or save the model again; a copy may be incomplete.",
            where=str(index),
        ) from None
