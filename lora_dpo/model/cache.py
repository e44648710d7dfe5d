"""The folder in which lora-dpo keeps what it would otherwise compute again, shared by all runs of a user."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Returns lora-dpo's cache: `LORA_DPO_CACHE`, else `lora-dpo` in the user's cache folder."""
    if own := os.environ.get("LORA_DPO_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "lora-dpo"
