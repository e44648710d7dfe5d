"""Documents without paths of the machine that they were written on."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

_PATH = re.compile(r"(?:[\w.]+=)?(?P<path>(?:~|/[^/\n]+)/[^\n]*)")
"""A value that is a path as a whole, blanks in it included, alone or behind the recipe's key."""
_TEXTS = (".json", ".md", ".yaml", ".jinja", ".jsonl")


def shortenings(documents: Mapping[str, Any], base: str | None, base_places: set[str]) -> dict[str, str]:
    """Returns what is written for each path of this machine that documents name.

    Args:
        documents: Recipe, records and configurations, as Python values.
        base: The Hub id of the base model, which takes the place of its local folder; None if it is not known.
        base_places: The paths that the base model has here.
    """
    found = {path for value in documents.values() for path in _paths(value)}
    short = {path: PurePath(path).name or "." for path in found}
    # What stands below a run's folder is told by its place there.
    short |= {str(Path(path).absolute()): name for path, name in short.items() if path.startswith("~")}
    if base is not None:
        short |= dict.fromkeys(base_places & short.keys(), base)
    return short


def is_text(path: str) -> bool:
    """Returns whether a file may name paths that can be shortened."""
    return path.endswith(_TEXTS) and PurePath(path).name not in ("tokenizer.json", "vocab.json")


def shortened(text: str, short: Mapping[str, str]) -> str:
    """Returns a text with each path replaced, the longest one first."""
    if not short:
        return text
    longest_first = sorted(short, key=len, reverse=True)
    pattern = re.compile("|".join(rf"{re.escape(path)}(?![\w-])" for path in longest_first))
    return pattern.sub(lambda match: short[match[0]], text)


def _paths(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for inner in value.values():
            yield from _paths(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _paths(inner)
    elif isinstance(value, str) and (match := _PATH.fullmatch(value)):
        yield match["path"]
