from __future__ import annotations

from pathlib import Path

import pytest

from lora_dpo.model.cache import cache_folder


def test_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORA_DPO_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("LORA_DPO_CACHE")
    assert cache_folder() == tmp_path / "user" / "lora-dpo"
