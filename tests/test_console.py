from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from lora_dpo import console
from lora_dpo.console import disk_full_error
from tests.process import ROOT, run_python

PROGRAM = """
import sys
from lora_dpo.console import errors_end_the_program, err, note, out, set_up_logging
from lora_dpo.errors import UserError
debug = "--debug" in sys.argv
set_up_logging(debug=debug)
with errors_end_the_program(debug=debug):
    {body}
print("the end")
"""


WAITS = """
import signal, sys, threading
from lora_dpo.console import interrupts_are_seen

def take_interrupts():
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Event().wait()

signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
threading.Thread(target=take_interrupts, daemon=True).start()
try:
    with interrupts_are_seen():
        input("> ")
except KeyboardInterrupt:
    print(signal.getsignal(signal.SIGALRM) is signal.SIG_DFL, signal.getitimer(signal.ITIMER_REAL))
"""


@pytest.fixture
def run(tmp_path: Path):
    """Returns a function that runs a line of Python as the program's body."""

    def run(body: str, *arguments: str, **environment: str):
        return run_python("-c", PROGRAM.format(body=body), *arguments, cwd=tmp_path, **environment)

    return run


DISGUISED = """
    import signal
    try:
        signal.raise_signal(signal.SIGINT)
    except BaseException:
        raise ValueError("shape?") from None
"""
MISTAKE = "raise UserError('the [bold] value 3', why='it is odd', fix='take 4', where='x.yaml:7')"


def test_a_mistake_ends_with_code_2_and_its_message_on_stderr(run) -> None:
    result = run(MISTAKE)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr == "Error: x.yaml:7: the [bold] value 3\nit is odd\ntake 4\n"


def test_a_long_message_is_not_broken_into_lines(run) -> None:
    result = run("raise UserError('/a/long/path' * 40)")
    assert result.stderr == f"Error: {'/a/long/path' * 40}\n"


def test_debug_shows_where_the_mistake_was_found(run) -> None:
    result = run(MISTAKE, "--debug")
    assert result.returncode == 2
    assert "Traceback" in result.stderr
    assert result.stderr.endswith("take 4\n")


def test_an_interrupt_that_does_not_wake_the_wait_for_an_answer_is_seen(tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", WAITS], cwd=tmp_path, env=env, **pipes) as waiting:
        assert waiting.stdout.read(2) == "> "
        waiting.send_signal(signal.SIGINT)
        assert waiting.stdout.read() == "True (0.0, 0.0)\n"


def test_a_program_without_mistakes_runs_on(run) -> None:
    result = run("out.print('result'); err.print('progress')")
    assert (result.returncode, result.stdout, result.stderr) == (0, "result\nthe end\n", "progress\n")


def test_what_an_encoding_does_not_have_is_replaced(run) -> None:
    body = "import lora_dpo.console as c; c.replace_what_cannot_be_shown(); out.print('a\N{GRINNING FACE}b')"
    result = run(body, PYTHONIOENCODING="latin-1", PYTHONUTF8="0")
    assert (result.returncode, result.stdout) == (0, "a?b\nthe end\n")


def test_a_bug_keeps_its_traceback_and_code_1(run) -> None:
    result = run("{}['key']")
    assert result.returncode == 1
    assert "Traceback" in result.stderr
    assert "KeyError: 'key'" in result.stderr


def test_ctrl_c_that_a_library_turns_into_an_error_of_its_own_ends_with_130(run) -> None:
    result = run(DISGUISED)
    assert (result.returncode, result.stderr) == (130, "Interrupted.\n")
    assert "ValueError: shape?" in run(DISGUISED, "--debug").stderr


def test_ctrl_c_ends_with_130(run) -> None:
    result = run("raise KeyboardInterrupt")
    assert (result.returncode, result.stderr) == (130, "Interrupted.\n")


def test_a_full_disk_is_a_mistake_that_can_be_mended(run) -> None:
    result = run("open('/dev/full', 'w').write('x' * 100_000)")  # the kernel's own ENOSPC
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert result.stderr.startswith("Error: The disk is full: [Errno 28] No space left on device\n")
    assert "run.folder=DIR" in result.stderr


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (MISTAKE, "2\nx.yaml:7: the [bold] value 3\nit is odd\ntake 4"),
        ("raise KeyboardInterrupt", "130"),
        ("{}['key']", "1"),
    ],
)
def test_the_exit_code_is_left_in_a_file_for_whoever_launched(run, tmp_path: Path, body: str, code: str) -> None:
    file = tmp_path / "code"
    run(body, LORA_DPO_EXIT_CODE_FILE=str(file))
    assert file.read_text(encoding="utf-8") == code


def test_no_file_where_all_went_well(run, tmp_path: Path) -> None:
    run("pass", LORA_DPO_EXIT_CODE_FILE=str(tmp_path / "code"))
    assert not (tmp_path / "code").exists()


def test_notes_come_from_rank_0_only(run) -> None:
    assert run("note('once [x]')").stderr == "once [x]\n"
    assert run("note('once')", RANK="0").stderr == "once\n"
    assert run("note('once')", RANK="1").stderr == ""


def test_log_lines_of_the_package_are_info_from_rank_0_and_warnings_from_all(run) -> None:
    body = (
        "import logging; own = logging.getLogger('lora_dpo.x'); own.debug('DDD'); own.info('III'); "
        "own.warning('WWW'); logging.getLogger('other').info('OOO')"
    )
    assert [word in run(body).stderr for word in ("DDD", "III", "WWW", "OOO")] == [False, True, True, False]
    assert [word in run(body, RANK="1").stderr for word in ("III", "WWW")] == [False, True]
    assert "DDD" in run(body, "--debug").stderr


def chained(cause: BaseException) -> Exception:
    try:
        try:
            raise cause
        except type(cause):
            raise ValueError("could not save")  # noqa: B904 - an implicit chain, as libraries leave it
    except ValueError as error:
        return error


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/runs/x"), "The disk is full: /runs/x"),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "/runs/x"), "The disk is full: /runs/x"),
        (OSError(errno.EDQUOT, "Quota"), "The disk is full: [Errno 122] Quota"),
        (chained(OSError(errno.ENOSPC, "No space", "/runs/x")), "The disk is full: /runs/x"),
        (
            RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)\nmore"),
            "The disk is full: Error while serializing: I/O error: No space left on device (os error 28)",
        ),
        (
            RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 89024 vs 88912"),
            "The disk is full: torch could not write a file to its end.",
        ),
    ],
)
def test_a_full_disk_is_recognised_however_it_is_worded(error: Exception, shown: str) -> None:
    mistake = disk_full_error(error)
    assert mistake is not None
    assert mistake.what == shown


@pytest.mark.parametrize("error", [OSError(errno.EACCES, "Permission denied"), ValueError("x"), KeyError()])
def test_other_errors_are_no_full_disk(error: Exception) -> None:
    assert disk_full_error(error) is None


@pytest.mark.parametrize(
    ("items", "total", "lines"),
    [
        ([7, 8], None, ["reading: 1 of 2", "reading: 2 of 2"]),
        (iter([7, 8]), 5, ["reading: 1 of 5", "reading: 2 of 5"]),
        (iter([7, 8]), None, ["reading: 1", "reading: 2"]),
        ([], None, []),
    ],
)
def test_a_log_is_told_how_far_it_is(items, total, lines, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(console, "SECONDS_BETWEEN_LINES", 0.0)
    monkeypatch.setattr(console, "err", Console(stderr=True))
    assert list(console.tracked(items, "reading", total=total)) == [7, 8][: len(lines)]
    assert capsys.readouterr().err.splitlines() == lines


def test_a_log_is_not_told_of_what_is_soon_done(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(console, "SECONDS_BETWEEN_LINES", 1e9)
    monkeypatch.setattr(console, "err", Console(stderr=True))
    assert list(console.tracked([1], "reading")) == [1]
    assert capsys.readouterr().err == ""


def test_other_ranks_say_nothing(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(console, "SECONDS_BETWEEN_LINES", 0.0)
    monkeypatch.setenv("RANK", "1")
    assert list(console.tracked([1], "reading")) == [1]
    assert capsys.readouterr().err == ""
