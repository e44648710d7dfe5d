from __future__ import annotations

import os
from pathlib import Path

import pytest

from lora_dpo.model.cache import cache_folder, write_whole


def test_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORA_DPO_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("LORA_DPO_CACHE")
    assert cache_folder() == tmp_path / "user" / "lora-dpo"


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "folder" / "file"
    write_whole(file, b"first")
    write_whole(file, b"second")
    assert file.read_bytes() == b"second"

    def fail(_: int) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="gone"):
        write_whole(file, b"third")
    assert file.read_bytes() == b"second"
    assert list(file.parent.iterdir()) == [file]
