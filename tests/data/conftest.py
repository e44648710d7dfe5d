from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lora_dpo.data.pair import Pair, group_of, user


@pytest.fixture
def jsonl(tmp_path: Path) -> Callable[..., Path]:
    """Writes rows as JSON Lines into the test's folder."""

    def write(rows: list, name: str = "data.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


@pytest.fixture
def pair() -> Callable[..., Pair]:
    """Makes a pair from texts."""

    def make(prompt: str, chosen: str = "yes", rejected: str = "no", group: str | None = None, **rest) -> Pair:
        turns = user(prompt)
        return Pair(turns, chosen, rejected, group or group_of(turns), **rest)

    return make


@pytest.fixture
def shared_data() -> Path:
    """The data beside the checkout, which is not part of the project."""
    folder = Path(__file__).resolve().parents[3] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"needs the data folder {folder}")
    return folder
