"""GGUF files: dequantised once, then kept as safetensors in the cache."""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
import tempfile
from functools import cache
from pathlib import Path

from filelock import FileLock

from lora_dpo.console import note
from lora_dpo.errors import UserError


def cache_folder() -> Path:
    """Returns lora-dpo's cache: `LORA_DPO_CACHE`, else `lora-dpo` in the user's cache folder."""
    if own := os.environ.get("LORA_DPO_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "lora-dpo"


def dequantised(file: Path) -> Path:
    """Returns a model folder (safetensors, float32, tokenizer) with the weights of a GGUF file.

    The folder is made once per file content, and renamed into place when it is whole, so that a conversion that
    was killed leaves nothing that looks like a model. Processes that start together wait for the first.

    Args:
        file: The GGUF file.

    Raises:
        UserError: The file cannot be read as a model.
    """
    with file.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise UserError(f"{file} is not a GGUF file.", why="Its first four bytes are not 'GGUF'.")
    digest = _digest(file, file.stat().st_mtime_ns)
    target = cache_folder() / "gguf" / f"{file.stem}-{digest[:16]}"
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_suffix(".lock")):
        if not target.is_dir():
            note(f"Dequantising {file.name} once; the result is kept in {target}")
            _convert(file, target)
    return target


@cache
def _digest(file: Path, modified_ns: int) -> str:
    """Returns the file's SHA-256, read once as long as it does not change: tokenizer and model both ask."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _convert(file: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=target.parent))
    try:
        try:
            model = AutoModelForCausalLM.from_pretrained(
                file.parent,
                gguf_file=file.name,
                quantization_config=GgufConfig(dequantize=True),
                dtype=torch.float32,
            )
            tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        except (ValueError, KeyError, IndexError, OSError, NotImplementedError, struct.error) as error:
            raise UserError(
                f"{file} cannot be read as a model: {error}", fix="Download it again; a copy may be incomplete."
            ) from error
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        partial.replace(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
