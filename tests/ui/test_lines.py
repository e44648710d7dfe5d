from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_dpo.errors import UserError
from lora_dpo.ui.lines import LineFile
from tests.process import ROOT

APPEND = """
import sys
from pathlib import Path
from lora_dpo.ui.lines import LineFile
file = LineFile(Path(sys.argv[1]))
for number in range(int(sys.argv[3])):
    file.append({"who": sys.argv[2], "number": number, "text": "x" * 3000})
    print(number, flush=True)
"""


def appending(path: Path, who: str, count: int) -> subprocess.Popen[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", APPEND, str(path), who, str(count)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)


def on_disk(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_bytes().decode().split("\n")[:-1]]


def test_lines_are_kept_in_their_order_and_read_by_others(tmp_path: Path) -> None:
    one, other = LineFile(tmp_path / "a" / "x.jsonl"), LineFile(tmp_path / "a" / "x.jsonl")
    assert one.append({"n": 1})
    assert other.lines == []
    assert other.append({"n": 2, "text": "ä\u2028\n"})
    assert other.lines == on_disk(one.path) == [{"n": 1}, {"n": 2, "text": "ä\u2028\n"}]
    one.refresh()
    assert one.lines == other.lines


def test_what_is_there_already_is_not_added(tmp_path: Path) -> None:
    one, other = LineFile(tmp_path / "x.jsonl"), LineFile(tmp_path / "x.jsonl")
    assert one.append({"id": "a"}, unless=lambda: {"id": "a"} in one.lines)
    assert not other.append({"id": "a"}, unless=lambda: {"id": "a"} in other.lines)
    assert on_disk(one.path) == [{"id": "a"}]


@pytest.mark.parametrize(("torn", "kept"), [('{"n": 2, "te', [1, 3]), ('{"n": 2}', [1, 2, 3]), ('"n"', [1, 3])])
def test_a_torn_last_line_is_moved_aside_or_completed(tmp_path: Path, capsys, torn: str, kept: list[int]) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"n": 1}\n' + torn)
    file = LineFile(path)
    assert file.lines == [{"n": 1}]
    file.append({"n": 3})
    assert [line["n"] for line in file.lines] == kept
    assert on_disk(path) == file.lines
    aside = tmp_path / "x.jsonl.torn"
    if 2 in kept:
        assert not aside.exists()
    else:
        assert aside.read_text() == torn + "\n"
        assert f"its {len(torn)} bytes are in {aside} now" in capsys.readouterr().err.replace("\n", "")


@given(cut=st.integers(0, 200), texts=st.lists(st.text(max_size=20), min_size=1, max_size=5))
@settings(max_examples=60)
def test_wherever_the_file_was_cut_whole_lines_stay(tmp_path_factory, cut: int, texts: list[str]) -> None:
    path = tmp_path_factory.mktemp("cut") / "x.jsonl"
    file = LineFile(path)
    for text in texts:
        file.append({"text": text})
    content = path.read_bytes()[: max(0, path.stat().st_size - cut)]
    path.write_bytes(content)
    again = LineFile(path)
    again.append({"text": "last"})
    whole = content.count(b"\n")
    last = content[content.rfind(b"\n") + 1 :]
    completed = bool(last) and last.endswith(b"}")  # all but the line break was there
    found = [line["text"] for line in on_disk(path)]
    assert found == [*_stored(texts)[: whole + completed], "last"]


def _stored(texts: list[str]) -> list[str]:
    return [text.encode(errors="replace").decode() for text in texts]


def test_another_file_under_the_same_name_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    file = LineFile(path)
    file.append({"n": 1})
    file.append({"n": 2})
    path.unlink()
    path.write_text('{"n": 7}\n\n{"n": 8}\n')
    file.refresh()
    assert file.lines == [{"n": 7}, {"n": 8}]
    path.unlink()
    file.refresh()
    assert file.lines == []


def test_a_line_that_is_no_object_is_named_and_nothing_is_touched(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"n": 1}\n\n[1]\n{"n": 2}\n')
    with pytest.raises(UserError, match=r"x\.jsonl, line 3: this line is no JSON object"):
        LineFile(path)
    assert path.read_text() == '{"n": 1}\n\n[1]\n{"n": 2}\n'


def test_a_full_disk_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = LineFile(tmp_path / "x.jsonl")
    file.append({"n": 1})

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        file.append({"n": 2})
    monkeypatch.undo()
    assert on_disk(file.path) == [{"n": 1}]
    file.append({"n": 3})
    assert on_disk(file.path) == file.lines == [{"n": 1}, {"n": 3}]


def test_threads_and_processes_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    processes = [appending(path, who, 40) for who in ("one", "two")]
    file = LineFile(path)
    threads = [
        threading.Thread(target=lambda who=who: [file.append({"who": who, "number": n}) for n in range(40)])
        for who in ("three", "four")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [process.wait(300) for process in processes] == [0, 0]
    lines = on_disk(path)
    for who in ("one", "two", "three", "four"):
        assert [line["number"] for line in lines if line["who"] == who] == list(range(40))
    assert len(lines) == 160


@pytest.mark.slow
def test_a_process_that_is_killed_loses_nothing_that_it_said_it_had_stored(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    for attempt in range(5):
        process = appending(path, str(attempt), 100_000)
        assert process.stdout is not None
        for _ in range(5 + attempt):
            last = int(process.stdout.readline())
        time.sleep(0.003 * attempt)
        process.send_signal(signal.SIGKILL)
        last = max([last, *map(int, process.stdout.read().split()[:-1])])
        process.wait()
        file = LineFile(path)
        file.append({"who": "healer", "number": 0})  # takes a torn line away, and the dead process's lock
        numbers = [line["number"] for line in on_disk(path) if line["who"] == str(attempt)]
        assert numbers == list(range(len(numbers)))
        assert len(numbers) > last
