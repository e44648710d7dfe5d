"""The folder in which lora-dpo keeps what it would otherwise compute again, shared by all runs of a user."""

from __future__ import annotations

import os
import uuid
from pathlib import Path


def cache_folder() -> Path:
    """Returns lora-dpo's cache: `LORA_DPO_CACHE`, else `lora-dpo` in the user's cache folder."""
    if own := os.environ.get("LORA_DPO_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "lora-dpo"


def write_whole(file: Path, content: bytes) -> None:
    """Writes a file that many processes may write at once: whole under its name, or not at all.

    Args:
        file: Where it goes; its folder is made.
        content: What it holds.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.{uuid.uuid4().hex}.partial")  # nobody else's, on whatever machine
    try:
        with partial.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)
