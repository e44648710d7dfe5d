from __future__ import annotations

import os
import sys

import pytest

from lora_dpo.ui.keys import read_key


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch):
    """Returns a function that types something, and returns the keys that are read of it until the end."""

    def keys(text: str) -> list[str]:
        reading, writing = os.pipe()
        os.write(writing, text.encode())
        os.close(writing)
        found = []
        with os.fdopen(reading) as stdin:
            monkeypatch.setattr(sys, "stdin", stdin)
            while (key := read_key()) != "end":
                found.append(key)
        return found

    return keys


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("\x1b[D\x1b[C\x1bOD\x1bOC", ["left", "right", "left", "right"]),
        ("1G\r\n", ["1", "g", "enter", "enter"]),
        ("éß", ["é", "ß"]),
        ("\t\x7f", ["", ""]),
        ("\x1b", [""]),
    ],
)
def test_keys_and_arrows(typed, text: str, keys: list[str]) -> None:
    assert typed(text) == keys


@pytest.mark.parametrize(
    "sequence",
    [
        "\x1b[1;2D",  # Shift+Left
        "\x1b[1;5C",  # Ctrl+Right
        "\x1b[11~",  # F1 of PuTTY
        "\x1b[[B",  # F2 of the Linux console
        "\x1b[3~",  # Delete
        "\x1b[?1;2c",  # what a terminal says of itself
        "\x1bO2C",  # Shift+Right of some
        "\x1b\x1b[D",  # Alt+Left of some
        "\x1bg",  # Alt+g
    ],
)
def test_an_unknown_sequence_is_one_key_without_a_meaning(typed, sequence: str) -> None:
    assert typed(f"{sequence}s") == ["", "s"]
