"""What this machine can run."""

from __future__ import annotations

import shutil
import sys
from importlib.util import find_spec

import pytest

# On a CPU DeepSpeed compiles a kernel when it starts, and PyTorch's builder does not quote the folder it links with.
needs_deepspeed = pytest.mark.skipif(
    find_spec("deepspeed") is None or shutil.which("c++") is None or " " in sys.prefix,
    reason="DeepSpeed is missing, or a C++ compiler, or the environment's path has a space",
)
