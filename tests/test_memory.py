from __future__ import annotations

from pathlib import Path

from lora_dpo.memory import memory_bytes
from tests.process import run_python

PEAK = "from lora_dpo.memory import memory_bytes; print(memory_bytes('VmHWM'))"


def test_counts_what_was_given_back_but_not_what_another_process_held(tmp_path: Path) -> None:
    before = memory_bytes("VmRSS")
    block = bytearray(b"x") * 300_000_000
    held = memory_bytes("VmRSS")
    child = run_python("-c", PEAK, cwd=tmp_path)
    del block
    assert held - before > 250_000_000
    assert memory_bytes("VmHWM") - before > 250_000_000
    assert int(child.stdout) < 250_000_000
