from __future__ import annotations

import os
from pathlib import Path

import pytest

from lora_dpo.files import write_json, write_text, write_whole


def test_writing_replaces_the_whole_file_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "file.txt"
    write_text(file, "a long first text\n")
    write_text(file, "café\n")
    assert file.read_text(encoding="utf-8") == "café\n"
    assert list(file.parent.iterdir()) == [file]


def test_who_reads_while_a_file_is_written_sees_one_of_the_two_texts_whole(tmp_path: Path) -> None:
    file = tmp_path / "file.txt"
    write_text(file, "old")
    with file.open(encoding="utf-8") as reader:
        write_text(file, "new and longer")
        assert reader.read() == "old"
    assert file.read_text(encoding="utf-8") == "new and longer"


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "file.txt"
    write_text(file, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(file, "x" * 100_000 + "\ud800")
    assert file.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_json_is_readable_by_people(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"a": ["é"]})
    assert (tmp_path / "x.json").read_text(encoding="utf-8") == '{\n  "a": [\n    "é"\n  ]\n}\n'


@pytest.mark.parametrize("shared", [False, True])
def test_a_disk_that_fails_leaves_the_old_file(shared: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "folder" / "file"
    write_whole(file, b"first", shared=shared)
    write_whole(file, b"second", shared=shared)
    assert file.read_bytes() == b"second"

    def fail(_: int) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="gone"):
        write_whole(file, b"third", shared=shared)
    assert file.read_bytes() == b"second"
    assert list(file.parent.iterdir()) == [file]
