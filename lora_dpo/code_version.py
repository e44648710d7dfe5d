"""Which version of this package's code runs."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

COMMIT_FILE = "COMMIT"
"""Beside a copy of the package that `lora-dpo submit` has made: the commit that it was made from."""


def commit() -> str | None:
    """Returns the checkout's commit, with `+` where files differ from it; None outside a checkout and a copy of one."""
    folder = Path(__file__).resolve().parent.parent
    if (folder / COMMIT_FILE).is_file():
        return (folder / COMMIT_FILE).read_text(encoding="utf-8").strip() or None
    if not (folder / ".git").exists():
        return None
    git = ["git", "-C", os.fspath(folder)]
    try:
        found = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{found}+" if changed else found
