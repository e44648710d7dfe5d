"""What memory this process holds, as Linux counts it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal


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
