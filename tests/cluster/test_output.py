from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lora_dpo.cluster.output import Output, Unfailing

SAYS = "import sys; print('a', flush=True); sys.stdout.write('b\\nc')"


def heard(output: Output, code: str = SAYS) -> None:
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        output.read_from(process.stdout)
        process.wait()
        output.finish()


def test_it_goes_into_the_log_and_on(tmp_path: Path):
    onward = tmp_path / "onward"
    with onward.open("wb") as file:
        output = Output(tmp_path / "logs" / "a.out", onward=file.fileno())
        output.write("first\n")
        heard(output)
    assert (tmp_path / "logs" / "a.out").read_text() == onward.read_text() == "first\na\nb\nc"
    assert output.last_lines == ["a", "b", "c"]


@pytest.mark.parametrize("log", ["/dev/full", "/proc/nothing/here"])
def test_nothing_is_lost_but_what_cannot_be_written(log: str):
    full = os.open("/dev/full", os.O_WRONLY)
    output = Output(Path(log), onward=full)
    heard(output, "print('x' * 10**6); print('last')")  # more than a pipe holds: a reader that gave up would block it
    assert output.last_lines[-1] == "last"
    os.close(full)


def test_a_disk_that_has_room_again_gets_the_rest(tmp_path: Path):
    log = tmp_path / "log"
    log.symlink_to("/dev/full")
    output = Output(log)
    output.write("lost\n")
    log.unlink()
    output.write("kept\n")
    assert log.read_text() == "kept\n"


def test_a_stream_that_never_fails():
    with open("/dev/full", "w") as full:
        stream = Unfailing(full)
        assert stream.write("words") == 5
        stream.flush()
        assert stream.isatty() is False
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())  # or closing it would fail
