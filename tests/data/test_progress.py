from __future__ import annotations

import io

import pytest
from rich.console import Console

from lora_dpo.data import progress


@pytest.mark.parametrize("terminal", [True, False])
def test_a_long_read_is_counted_on_a_terminal(monkeypatch, terminal):
    screen = io.StringIO()
    monkeypatch.setattr(progress, "err", Console(file=screen, force_terminal=terminal, width=60))
    monkeypatch.setattr(progress, "_SILENT_SECONDS", 0.0)
    assert list(progress.counted(range(1000), "Reading x.csv")) == list(range(1000))
    assert ("Reading x.csv" in screen.getvalue()) is terminal


def test_a_short_read_is_silent(monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(progress, "err", Console(file=screen, force_terminal=True))
    assert list(progress.counted("abc", "Reading x.csv")) == ["a", "b", "c"]
    assert screen.getvalue() == ""
