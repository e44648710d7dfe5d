"""Safetensors files, read and written one tensor at a time, so that no file has to fit into memory."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from lora_dpo.errors import UserError

_FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_CODES = {dtype: code for code, dtype in _FLOATS.items()}
_METADATA = "__metadata__"
_AGAIN = "Download or copy it again."
_LENGTH_BYTES = 8
"""A file begins with its header's length; the header is filled up to a multiple of as many bytes."""


@dataclass(frozen=True, slots=True)
class Written:
    """A file that was written.

    Attributes:
        names: Its tensors.
        tensor_bytes: Their size.
        sha256: The file's hash.
    """

    names: list[str]
    tensor_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class _Entry:
    """A tensor in a file: its dtype as safetensors writes it, its shape, its bytes and those of one of its numbers."""

    name: str
    code: str
    shape: list[int]
    size: int
    width: int


def rewrite(
    source: Path, target: Path, change: Callable[[str, Tensor], Tensor], dtype: torch.dtype | None = None
) -> Written:
    """Writes a safetensors file again, with other values in tensors of the same names and shapes.

    Args:
        source: The file that is read.
        target: The file that is written.
        change: Returns a tensor's new value, from its name and its old one. It is rounded here, once.
        dtype: Precision of the floating-point tensors; None leaves each in its own.
    """
    entries, metadata = _entries(source, dtype)
    digest = hashlib.sha256()
    with target.open("wb") as file:

        def put(content: bytes | memoryview) -> None:
            file.write(content)
            digest.update(content)

        put(_header(entries, metadata))
        for entry in entries:
            value = change(entry.name, read(source, entry.name))
            put(_raw(value.to(_FLOATS.get(entry.code, value.dtype))))
        file.flush()
        os.fsync(file.fileno())
    return Written([entry.name for entry in entries], _total(entries), digest.hexdigest())


def rewritten_bytes(source: Path, dtype: torch.dtype | None) -> int:
    """Returns how many bytes of tensors `rewrite` would write."""
    return _total(_entries(source, dtype)[0])


def read(file: Path, name: str) -> Tensor:
    """Reads one tensor. The file is opened for each: what was read of an open one counts as memory until it is closed.

    Args:
        file: A safetensors file.
        name: The tensor's name.
    """
    with safe_open(file, framework="pt") as tensors:
        return tensors.get_tensor(name)


def float_dtypes(file: Path) -> dict[str, torch.dtype]:
    """Returns the precision of each floating-point tensor of a file."""
    header = _source_header(file)
    return {name: _FLOATS[about["dtype"]] for name, about in header.items() if about.get("dtype") in _FLOATS}


def _entries(source: Path, dtype: torch.dtype | None) -> tuple[list[_Entry], dict[str, str]]:
    """Returns the tensors as they will be written, and what is said about the file."""
    header = _source_header(source)
    metadata = header.pop(_METADATA, {"format": "pt"})
    entries = []
    for name, about in header.items():
        code, (begin, end), count = about["dtype"], about["data_offsets"], math.prod(about["shape"])
        if code in _FLOATS:
            code = code if dtype is None else _CODES[dtype]
            width = _FLOATS[code].itemsize
        else:
            width = (end - begin) // count if count else 1
        entries.append(_Entry(name, code, about["shape"], count * width, width))
    # Wide numbers first, as safetensors itself has it: so each tensor begins at a multiple of its numbers' size.
    return sorted(entries, key=lambda entry: (-entry.width, entry.name)), metadata


def _source_header(file: Path) -> dict[str, Any]:
    """Reads what a file says of its tensors; the rest of the file is not looked at."""
    try:
        with file.open("rb") as opened:
            return json.loads(opened.read(int.from_bytes(opened.read(_LENGTH_BYTES), "little")))
    except FileNotFoundError:
        raise UserError(f"The model has no {file.name}, which its index names.", fix=_AGAIN, where=str(file)) from None
    except (ValueError, OverflowError, MemoryError):  # cut off, or no safetensors file at all
        raise UserError("The file is damaged: its header cannot be read.", fix=_AGAIN, where=str(file)) from None


def _header(entries: list[_Entry], metadata: dict[str, str]) -> bytes:
    header: dict[str, Any] = {_METADATA: metadata}
    begin = 0
    for entry in entries:
        header[entry.name] = {
            "dtype": entry.code,
            "shape": entry.shape,
            "data_offsets": [begin, begin + entry.size],
        }
        begin += entry.size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _LENGTH_BYTES)
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text


def _raw(tensor: Tensor) -> memoryview:
    return memoryview(tensor.contiguous().flatten().view(torch.uint8).numpy())


def _total(entries: list[_Entry]) -> int:
    return sum(entry.size for entry in entries)
