"""What this machine can run, and how it is made to refuse."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest

# On a CPU DeepSpeed compiles a kernel when it starts, and PyTorch's builder does not quote the folder it links with.
needs_deepspeed = pytest.mark.skipif(
    find_spec("deepspeed") is None or shutil.which("c++") is None or " " in sys.prefix,
    reason="DeepSpeed is missing, or a C++ compiler, or the environment's path has a space",
)


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Makes a folder one that this process may not write to; modes do not keep root from it, a mount does."""
    bound = subprocess.run(["mount", "--bind", folder, folder], capture_output=True, check=False).returncode == 0
    if bound:
        subprocess.run(["mount", "-o", "remount,ro,bind", folder], check=True)
    else:
        folder.chmod(0o555)
    try:
        yield
    finally:
        if bound:
            subprocess.run(["umount", "--lazy", folder], check=True)  # a model's file may still be mapped
        else:
            folder.chmod(0o755)
