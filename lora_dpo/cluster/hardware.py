"""What this machine has, found out without importing torch."""

from __future__ import annotations

import os
import shutil
import subprocess

_NO_DEVICE = {"", "-1", "NoDevFiles"}  # the last is what Slurm writes for a job without GPUs


def cpu_count() -> int:
    """Returns the number of processors that this process may use; a batch job's are fewer than the node's."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def gpu_count() -> int:
    """Returns the number of NVIDIA GPUs that a process started here may use."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([device for device in visible.split(",") if device.strip() not in _NO_DEVICE])
    if shutil.which("nvidia-smi") is None:
        return 0
    try:
        listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:  # a driver that hangs has no GPU to offer
        return 0
    return sum(line.startswith("GPU ") for line in listing.stdout.splitlines())
