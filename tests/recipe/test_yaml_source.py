from __future__ import annotations

from pathlib import Path

import pytest

from lora_dpo.errors import UserError
from lora_dpo.recipe.yaml_source import parse_file, parse_value


def written(folder: Path, content: str | bytes) -> Path:
    file = folder / "recipe.yaml"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *((word, word) for word in ("on", "off", "yes", "no", "On", "OFF", "y", "n", "tRUE")),
        *((word, True) for word in ("true", "True", "TRUE")),
        *((word, False) for word in ("false", "False")),
        *((word, None) for word in ("null", "~", "Null", "")),
        ("010", 10),
        ("-3", -3),
        ("+4", 4),
        ("0x10", "0x10"),
        ("1_000", "1_000"),
        ("0.1", 0.1),
        ("1e3", 1000.0),
        ("5e-6", 5e-6),
        ("1.", 1.0),
        ("-.5", -0.5),
        (".inf", float("inf")),
        ("e5", "e5"),
        (".", "."),
        ("12:30:00", "12:30:00"),
        ("2026-01-02", "2026-01-02"),
        ('"5"', "5"),
        ("[a, 2]", ["a", 2]),
        ("{sample: 3}", {"sample": 3}),
        ("org/name", "org/name"),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text: str, value: object) -> None:
    found = parse_value(text, "test")
    assert (found, type(found)) == (value, type(value))


def test_lines_of_keys_and_items(tmp_path: Path) -> None:
    file = written(tmp_path, "# a comment\nmodel:\n  name: x\n\ndata: {path: [a,\n  {path: b}]}\n")
    values, lines = parse_file(file)
    assert values == {"model": {"name": "x"}, "data": {"path": ["a", {"path": "b"}]}}
    assert lines == {
        ("model",): 2,
        ("model", "name"): 3,
        ("data",): 5,
        ("data", "path"): 5,
        ("data", "path", 0): 5,
        ("data", "path", 1): 6,
        ("data", "path", 1, "path"): 6,
    }


@pytest.mark.parametrize("text", ["", "# only a comment\n", "---\n", "null\n"])
def test_an_empty_file_is_an_empty_mapping(tmp_path: Path, text: str) -> None:
    assert parse_file(written(tmp_path, text))[0] == {}


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    values, lines = parse_file(written(tmp_path, b"\xef\xbb\xbfmodel: {name: x}\n"))
    assert values == {"model": {"name": "x"}}
    assert lines[("model",)] == 1


def refusal(file: Path) -> str:
    with pytest.raises(UserError) as caught:
        parse_file(file)
    return str(caught.value)


def test_a_key_that_stands_twice_is_refused_with_both_lines(tmp_path: Path) -> None:
    file = written(tmp_path, "train:\n  epochs: 1\n  warmup: 0\n  epochs: 2\n")
    message = refusal(file)
    assert message.startswith(f"{file}:4: 'train.epochs' stands twice.")
    assert "The first time is line 2" in message


def test_the_same_key_in_two_sections_is_two_keys(tmp_path: Path) -> None:
    assert parse_file(written(tmp_path, "a: {x: 1}\nb: {x: 2}\n"))[0] == {"a": {"x": 1}, "b": {"x": 2}}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"model: {name: caf\xe9}\n", ["{file} is not UTF-8 text.", "Byte 17"]),
        (b"\xff\xfem\x00", ["{file} is not UTF-8 text.", "Byte 0"]),
        ("a: b\nc: \0\n", ["{file}: not valid YAML", "U+0000 at position 8"]),
        ("- a\n- b\n", ["{file} holds a list, not sections with keys."]),
        ("just words\n", ["{file} holds a single value, not sections with keys."]),
        ("42", ["{file} holds a single value, not sections with keys."]),
        ("model:\n  name: x\n bad: y\n", ["{file}:3: not valid YAML: "]),
        ("model:\n\tname: x\n", ["{file}:2: not valid YAML: ", "cannot start any token", "Indent with spaces"]),
        ("a: [1,\nb: 2\n", ["{file}:3: not valid YAML: "]),
        ("a: b: c\n", ["{file}:1: not valid YAML: mapping values are not allowed here.", "in quotes"]),
        ("a: *nowhere\n", ["{file}:1: not valid YAML: found undefined alias"]),
        ("a: 1\n---\nb: 2\n", ["{file}:2: not valid YAML: "]),
        ("a: !!python/object:os.system x\n", ["{file}:1: not valid YAML: could not determine a constructor"]),
        ("a: !!int x\n", ["{file}: not valid YAML: invalid literal"]),
        ("? [a]\n: b\n", ["{file}:1: not valid YAML: found unhashable key."]),
        ("a: 1\n7: b\n", ["{file}:2: the key 7 is not a name."]),
        ("a: &a {b: *a}\n", ["{file}: nested too deeply, or an anchor that holds itself."]),
        ("[" * 5000, ["{file}: nested too deeply"]),
    ],
)
def test_what_is_no_recipe_is_refused(tmp_path: Path, content: str | bytes, words: list[str]) -> None:
    file = written(tmp_path, content)
    message = refusal(file)
    for word in words:
        assert word.format(file=file) in message


def test_a_file_that_cannot_be_opened(tmp_path: Path) -> None:
    assert refusal(tmp_path / "no.yaml") == f"{tmp_path / 'no.yaml'} cannot be read: No such file or directory."


def test_a_value_that_is_no_yaml_names_the_place_it_was_written_at() -> None:
    with pytest.raises(UserError, match="^command line: a.b=@x: not valid YAML: .*'@'"):
        parse_value("@x", "command line: a.b=@x")
    with pytest.raises(UserError, match="'test' stands twice"):
        parse_value("{test: 1, test: 2}", "here")
