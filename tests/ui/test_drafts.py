from __future__ import annotations

import dataclasses
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
    assert one.all("sides") == other.all("sides") == DraftFile(path).all("sides") == expected
    assert len({each.question for each in expected.values()}) == 2


def test_other_weights_may_write_the_same_answers(path: Path) -> None:
    file, first = DraftFile(path), draft()
    again = dataclasses.replace(first, made_by="others")
    for each in (first, again, first, again):
        file.add(each)
    assert first.id == again.id
    assert DraftFile(path).all("sides") == {first.id: first}
    assert DraftFile(path).all("others") == {first.id: again}
    assert DraftFile(path).all("nobody") == {first.id: first}
    assert len(path.with_name(".prefs.jsonl.drafts").read_text().splitlines()) == 2


def test_what_was_returned_does_not_change(path: Path) -> None:
    file = DraftFile(path)
    before = file.all("sides")
    file.add(draft("A?"))
    assert before == {}
    assert len(file.all("sides")) == 1


def test_threads_take_each_line_once(path: Path) -> None:
    file, writer, count = DraftFile(path), DraftFile(path), 150
    seen: list[int] = []
    errors: list[Exception] = []

    def read() -> None:
        try:
            while len(found := file.all("sides")) < count:
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
    assert len(file.all("sides")) == count
