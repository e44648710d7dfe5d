"""GGUF files: dequantised once, then kept as safetensors in the cache."""

from __future__ import annotations

import shutil
import struct
import tempfile
from pathlib import Path

from filelock import FileLock

from lora_dpo.console import note
from lora_dpo.errors import UserError
from lora_dpo.model.cache import cache_folder
from lora_dpo.model.hashes import file_hash


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
    target = cache_folder() / "gguf" / f"{file.stem}-{file_hash(file)[:16]}"
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_suffix(".lock")):
        if not target.is_dir():
            note(f"Dequantising {file.name} once; the result is kept in {target}")
            _convert(file, target)
    return target


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
