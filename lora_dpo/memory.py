"""What memory this process holds, as Linux counts it, and giving it back."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path
from typing import Literal

_M_MMAP_THRESHOLD = -3  # of malloc.h
_LARGE_BYTES = 2**20


def give_large_blocks_back() -> None:
    """Lets each freed tensor's memory go back to the system at once, for the rest of the process.

    glibc does so by itself only until the first one has been freed. From then on it keeps blocks of up to 32 MB for
    later, between others that are still in use, and who reads a model layer by layer ends up with twice what is
    needed. Other C libraries have no such setting, and none is set.
    """
    if (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)


def memory_bytes(field: Literal["VmRSS", "VmHWM", "VmData"]) -> int:
    """Returns how much memory this process holds, or has held at most.

    `getrusage` would not do: its maximum counts what the process that started this one held.

    Args:
        field: `VmRSS` is now, `VmHWM` the most, `VmData` what was asked for, in use or not.
    """
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    found = re.search(rf"^{field}:\s+(\d+) kB$", status, re.MULTILINE)
    if found is None:
        raise RuntimeError(f"/proc/self/status has no {field}.")
    return int(found[1]) * 1024
