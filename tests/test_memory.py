from __future__ import annotations

from pathlib import Path

from lora_dpo.memory import memory_bytes
from tests.process import run_python

KEPT = """
import sys, torch
from lora_dpo.memory import give_large_blocks_back, memory_bytes
if sys.argv[1] == "give":
    give_large_blocks_back()
before, pins = memory_bytes("VmRSS"), []
for _ in range(2):  # glibc learns from the first round
    blocks = []
    for _ in range(20):
        blocks.append(torch.ones(2**21))
        pins.append(torch.ones(2**10))
    del blocks
print(memory_bytes("VmRSS") - before)
"""
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


def test_freed_tensors_go_back_to_the_system(tmp_path: Path) -> None:
    kept, given_back = (int(run_python("-c", KEPT, word, cwd=tmp_path).stdout) for word in ("keep", "give"))
    assert kept > 100_000_000, "without it glibc keeps them: else there is nothing to test"
    assert given_back < 20_000_000
