"""Reading YAML as YAML 1.2 does, with the line of every key, so that errors can point at it; and writing it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from lora_dpo.errors import UserError

KeyPath = tuple[str | int, ...]
_Place = Callable[[int | None], str]
"""From a line, where it is known, to what errors begin with."""


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the scalars of YAML 1.2.

    YAML 1.1 reads `5e-6` as a string, `12:30:00` as 45000 and `on` as true; 1.2 does not.
    """


_FLOAT = r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"


class _Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper, which also quotes what only YAML 1.2 would take for a number, such as the commit `12e4`."""


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    ("float", _FLOAT, "-+.0123456789"),
):
    for _side in (_Loader, _Dumper):
        _side.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first))


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    return int(loader.construct_scalar(node))  # 1.1's constructor reads 010 as octal


_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)


def dump(values: Any, **options: Any) -> str:
    """Returns values as YAML that readers of 1.1 and of 1.2 take for the same.

    Args:
        values: Plain values.
        options: Of `yaml.dump`.
    """
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, **options)


def parse_value(text: str, where: str) -> Any:
    """Returns the value that `text` has on the right of a key in a recipe.

    Args:
        text: The value as it was written.
        where: The place it was written at, for errors.

    Raises:
        UserError: The text is not YAML, or names a key twice.
    """
    return _parse(text, lambda line: where)[0]


def parse_file(path: Path) -> tuple[dict[str, Any], dict[KeyPath, int]]:
    """Reads a YAML file whose top level is a mapping.

    Args:
        path: The file.

    Returns:
        The mapping, and the line (from 1) of every key path in it.

    Raises:
        UserError: The file cannot be read, is not YAML, names a key twice or is no mapping.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 text.",
            why=f"Byte {error.start} cannot be decoded.",
            fix="Save it as UTF-8, or check that it is the recipe and not another file.",
        ) from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    value, lines = _parse(text, lambda line: f"{path}:{line}" if line else str(path))
    if value is None:
        value = {}
    if not isinstance(value, dict):
        raise UserError(
            f"{path} holds {'a list' if isinstance(value, list) else 'a single value'}, not sections with keys.",
            fix="A recipe starts with sections such as 'model:' and 'run:'.",
        )
    return value, lines


def _parse(text: str, place: _Place) -> tuple[Any, dict[KeyPath, int]]:
    lines: dict[KeyPath, int] = {}
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None, lines
            value = loader.construct_document(node)
        finally:
            loader.dispose()
        _collect_lines(node, (), lines, place)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = place(mark.line + 1 if mark else None)
        raise UserError(f"not valid YAML: {_problem(error)}.", fix=_fix(error), where=where) from None
    except ValueError as error:  # a tag such as !!int on what is none
        raise UserError(f"not valid YAML: {error}.", where=place(None)) from None
    except RecursionError:
        raise UserError("nested too deeply, or an anchor that holds itself.", where=place(None)) from None
    return value, lines


def _collect_lines(node: yaml.Node, path: KeyPath, lines: dict[KeyPath, int], place: _Place) -> None:
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            lines[(*path, index)] = item.start_mark.line + 1
            _collect_lines(item, (*path, index), lines, place)
    if isinstance(node, yaml.MappingNode):
        for key_node, value_node in node.value:
            key_path = (*path, key_node.value)
            line = key_node.start_mark.line + 1
            if key_node.tag != "tag:yaml.org,2002:str":
                raise UserError(f"the key {key_node.value or 'null'} is not a name.", where=place(line))
            if key_path in lines:
                raise UserError(
                    f"'{'.'.join(map(str, key_path))}' stands twice.",
                    why=f"The first time is line {lines[key_path]}; only one can be meant.",
                    where=place(line),
                )
            lines[key_path] = line
            _collect_lines(value_node, key_path, lines, place)


def _fix(error: yaml.YAMLError) -> str:
    if not isinstance(error, yaml.scanner.ScannerError):
        return ""
    return "Indent with spaces, not tabs." if "\\t" in _problem(error) else "Put a value with special signs in quotes."


def _problem(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.reader.ReaderError):
        return f"the character U+{error.character:04X} at position {error.position} is not allowed in text"
    return getattr(error, "problem", None) or str(error)
