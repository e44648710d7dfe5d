"""Reads the rows of JSON and JSON Lines files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lora_dpo.data.row import Row, Unreadable
from lora_dpo.data.text_lines import text_lines
from lora_dpo.errors import UserError


def read_jsonl(path: Path) -> Iterator[Row | Unreadable]:
    """Yields one row a line; blank lines are passed over."""
    with text_lines(path) as lines:
        for line in lines:
            if not line.strip():
                continue
            try:
                values = json.loads(line)
            except (ValueError, RecursionError) as error:
                yield Unreadable(f"the line is not valid JSON ({error}){lines.cut_off}", lines.where)
                continue
            yield _row(values, lines.where)


def read_json(path: Path) -> Iterator[Row | Unreadable]:
    """Yields the objects of `[{...}, ...]` or `{"data": [{...}, ...]}`, counted from 1."""
    with text_lines(path) as lines:
        text = "".join(lines)
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise _invalid(path, text, error) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"the file is not readable JSON ({error})", where=str(path)) from None
    items = content.get("data") if isinstance(content, dict) else content
    if not isinstance(items, list):
        raise UserError(
            f"the file holds {_kind(content)}, not a list of rows",
            fix='A .json file holds [{...}, {...}] or {"data": [...]}; one object a line is called .jsonl.',
            where=str(path),
        )
    for number, item in enumerate(items, start=1):
        yield _row(item, f"{path}, row {number}")


def _row(values: Any, where: str) -> Row | Unreadable:
    if isinstance(values, dict):
        return Row(values, where)
    return Unreadable(f"this is {_kind(values)}, not a JSON object", where)


def _invalid(path: Path, text: str, error: json.JSONDecodeError) -> UserError:
    why, fix = "", "Mend the file at this place; `python -m json.tool` checks it."
    if not text[error.pos :].strip() or error.msg.startswith("Unterminated string"):
        why = "The file ends before the JSON does: it is probably half written or was not copied to the end."
        fix = "Make or copy it again."
    elif error.msg == "Extra data":
        why = "A second value follows the first."
        fix = "If every line is an object of its own, rename the file to .jsonl."
    what = f"not valid JSON: {error.msg} at column {error.colno}"
    return UserError(what, why=why, fix=fix, where=f"{path}, line {error.lineno}")


def _kind(value: Any) -> str:
    kinds = {
        dict: "an object without a list 'data'",
        list: "a list",
        str: "a string",
        bool: "true or false",
        type(None): "null",
    }
    return kinds.get(type(value), "a number")
