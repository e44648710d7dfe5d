from __future__ import annotations

from pathlib import Path

from tests.process import run_python

HANGS = """
import time
from lora_dpo.training.hang import HangWatch

def waits_for_ever():
    time.sleep(100)

watch = HangWatch(0.5)
with watch.watching():
    time.sleep(1.5)  # as an engine that is started
    watch.beat()
    waits_for_ever()
"""

GETS_ON = """
import time
from lora_dpo.training import hang

class Clock:
    now = 0.0
    def monotonic(self):
        return self.now

hang._LOOKS_EACH_SECONDS = 0.05
hang.time = clock = Clock()
watch = hang.HangWatch(1000.0)
with watch.watching():
    for _ in range(5):
        watch.beat()
        clock.now += 600
        time.sleep(0.3)
    with watch.paused():
        clock.now += 5000
        time.sleep(0.3)
clock.now += 5000
time.sleep(0.3)
print("through")
"""

HOLDS_THE_INTERPRETER = """
import ctypes
from lora_dpo.training import hang

hang._LOOKS_EACH_SECONDS = 0.1
watch = hang.HangWatch(5)
with watch.watching():
    watch.beat()
    ctypes.PyDLL(None).sleep(100)
"""


def test_a_process_that_hangs_ends_with_its_stack(tmp_path: Path) -> None:
    done = run_python("-c", HANGS, cwd=tmp_path, RANK="3")
    assert done.returncode == 1
    assert "[rank 3] Error: no micro-batch has ended for 0.5 seconds (train.hang_timeout)" in done.stderr
    assert "in waits_for_ever" in done.stderr


def test_one_that_gets_on_is_left_alone(tmp_path: Path) -> None:
    done = run_python("-c", GETS_ON, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "through\n")


def test_one_that_holds_the_interpreter_ends_as_well(tmp_path: Path) -> None:
    done = run_python("-c", HOLDS_THE_INTERPRETER, cwd=tmp_path)
    assert done.returncode == 1
    assert "Timeout" in done.stderr
    assert 'File "<string>", line 9' in done.stderr
