from __future__ import annotations

import sys
import threading
from pathlib import Path

import pytest

from lora_dpo.ui.drafts import DraftFile
from tests.ui.votes import draft


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "prefs.jsonl"


def test_drafts_are_seen_by_other_processes_and_a_second_start(path: Path) -> None:
    one, other = DraftFile(path), DraftFile(path)
    one.add(draft("A?"))
    other.add(draft("B?"))
    other.add(draft("A?"))
    expected = {each.id: each for each in (draft("A?"), draft("B?"))}
    assert one.all() == other.all() == DraftFile(path).all() == expected
    assert len({each.question for each in expected.values()}) == 2


def test_what_was_returned_does_not_change(path: Path) -> None:
    file = DraftFile(path)
    before = file.all()
    file.add(draft("A?"))
    assert before == {}
    assert len(file.all()) == 1


def test_threads_take_each_line_once(path: Path) -> None:
    file, writer, count = DraftFile(path), DraftFile(path), 150
    seen: list[int] = []
    errors: list[Exception] = []

    def read() -> None:
        try:
            while len(found := file.all()) < count:
                seen.append(sum(1 for each in found.values() if each.id))
        except Exception as error:
            errors.append(error)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=read, daemon=True) for _ in range(3)]
        for thread in threads:
            thread.start()
        for number in range(count):
            (writer if number % 2 else file).add(draft(f"Question {number}?"))
        for thread in threads:
            thread.join(300)
    finally:
        sys.setswitchinterval(before)
    assert errors == []
    assert not any(thread.is_alive() for thread in threads)
    assert len(file.all()) == count
