from __future__ import annotations

import pytest

from lora_dpo.inference.wrapping import wrapped


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        (["The", " quick", " brown fox", " jumps"], "The quick\nbrown fox\njumps"),
        (["1234567890", " 12"], "1234567890\n12"),
        (["a line\n", "  indented", "\n\nend"], "a line\n  indented\n\nend"),
        (["a much longerwordthanthat", " b"], "a much\nlongerwordthanthat\nb"),
        (["你好你好", "你", " ok"], "你好你好你\nok"),
        (["\x1b[2Jhi\tyou\r"], "[2Jhi\nyou"),
        (["one\u2028two", "\u2029three"], "one\ntwo\nthree"),
        (["\u202eabc\u2066def\u2069\u202c", " אב‏"], "abcdef אב‏"),
        ([], ""),
    ],
)
def test_lines_are_broken_between_words(pieces: list[str], expected: str) -> None:
    assert "".join(wrapped(pieces, 10)) == expected


def test_text_is_passed_on_as_it_comes() -> None:
    came: list[str] = []

    def pieces():
        for piece in ("one", " two"):
            came.append(piece)
            yield piece

    lines = wrapped(pieces(), 80)
    assert next(lines) == "one"
    assert came == ["one"]
