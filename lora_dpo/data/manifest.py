"""The files that say what a run was trained and tested on: pairs, examples, questions, and `splits.json`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, TypedDict, TypeVar, get_args

from lora_dpo.data.example import Example
from lora_dpo.data.files import read_rows
from lora_dpo.data.pair import Pair
from lora_dpo.data.question import Question
from lora_dpo.data.report import ReadReport
from lora_dpo.data.split import SPLITS
from lora_dpo.errors import UserError
from lora_dpo.files import write_json, write_text
from lora_dpo.recipe.schema import SplitName

T = TypeVar("T")

Unit = Literal["pairs", "examples"]
"""What a run's data consists of: preferences, or answers to be learnt."""
UNITS: tuple[Unit, ...] = get_args(Unit)
_REQUIRED = ("groups", "hash", "group_ids")


class _Count(TypedDict, total=False):
    pairs: int
    examples: int


class SplitEntry(_Count):
    """What `splits.json` says about one split: how many pairs or examples it has, and of which questions."""

    groups: int
    hash: str
    group_ids: list[str]


def pairs_hash(pairs: Iterable[Pair | Example]) -> str:
    """Returns the SHA-256 of the pairs' (or examples') contents and groups, the same for every order of them."""
    digests = sorted(hashlib.sha256(_content(pair).encode()).digest() for pair in pairs)
    return hashlib.sha256(b"".join(digests)).hexdigest()


def split_manifest(
    splits: Mapping[SplitName, Sequence[Pair | Example]], unit: Unit = "pairs"
) -> dict[SplitName, SplitEntry]:
    """Returns sizes, hash and group ids of each split, ready to be written as JSON.

    Args:
        splits: Pairs or examples by split.
        unit: What they are.
    """
    manifest: dict[SplitName, SplitEntry] = {}
    for name in SPLITS:
        pairs = splits[name]
        groups = sorted({pair.group for pair in pairs})
        manifest[name] = {unit: len(pairs), "groups": len(groups), "hash": pairs_hash(pairs), "group_ids": groups}
    return manifest


def write_pairs(path: Path, splits: Mapping[SplitName, Sequence[Pair]]) -> None:
    """Writes `pairs.jsonl`: one pair a line, with its split. The file appears whole or not at all."""
    _write(path, splits)


def read_pairs(path: Path) -> dict[SplitName, list[Pair]]:
    """Reads what `write_pairs` wrote.

    Raises:
        UserError: The file is missing or damaged.
    """
    return _read(path, "pair", lambda values: Pair(**{**values, "prompt": tuple(values["prompt"])}))


def write_examples(path: Path, splits: Mapping[SplitName, Sequence[Example]]) -> None:
    """Writes `examples.jsonl`: one example a line, with its split. The file appears whole or not at all."""
    _write(path, splits)


def read_examples(path: Path) -> dict[SplitName, list[Example]]:
    """Reads what `write_examples` wrote.

    Raises:
        UserError: The file is missing or damaged.
    """
    return _read(path, "example", lambda values: Example(**{**values, "prompt": tuple(values["prompt"])}))


def read_data(folder: Path) -> dict[SplitName, list[Pair]] | dict[SplitName, list[Example]]:
    """Reads what a run was trained and tested on: its pairs or, of an SFT run, its examples.

    Args:
        folder: The run's folder `data/`.

    Raises:
        UserError: The file is missing or damaged.
    """
    examples = folder / "examples.jsonl"
    return read_examples(examples) if examples.is_file() else read_pairs(folder / "pairs.jsonl")


def write_questions(path: Path, splits: Mapping[SplitName, Sequence[Question]]) -> None:
    """Writes `questions.jsonl`: one question a line, with its split. The file appears whole or not at all."""
    _write(path, splits)


def read_questions(path: Path) -> dict[SplitName, list[Question]]:
    """Reads what `write_questions` wrote.

    Raises:
        UserError: The file is missing or damaged.
    """
    return _read(path, "question", _question)


def write_manifest(path: Path, manifest: Mapping[SplitName, SplitEntry]) -> None:
    """Writes `splits.json`. The file appears whole or not at all."""
    write_json(path, manifest)


def read_manifest(path: Path) -> dict[SplitName, SplitEntry]:
    """Reads what `write_manifest` wrote.

    Raises:
        UserError: The file is missing or damaged.
    """
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        missing = [
            f"{name}.{key}"
            for name in SPLITS
            for key in (next((unit for unit in UNITS if unit in manifest[name]), "pairs"), *_REQUIRED)
            if key not in manifest[name]
        ]
    except FileNotFoundError:
        raise _damaged("the file does not exist", str(path)) from None
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(f"the file is no split manifest ({type(error).__name__}: {error})", str(path)) from None
    if missing:
        raise _damaged(f"the file lacks {', '.join(missing)}", str(path))
    return manifest


def _write(path: Path, splits: Mapping[SplitName, Sequence[Pair | Example | Question]]) -> None:
    lines = (_dump({"split": name, **asdict(one)}) for name in SPLITS for one in splits[name])
    write_text(path, "".join(f"{line}\n" for line in lines))


def _read(path: Path, kind: str, make: Callable[[dict[str, Any]], T]) -> dict[SplitName, list[T]]:
    splits: dict[SplitName, list[T]] = {name: [] for name in SPLITS}
    for row in read_rows(path, "error", ReadReport()):
        try:
            values = dict(row.values)
            splits[values.pop("split")].append(make(values))
        except (KeyError, TypeError) as error:
            raise _damaged(f"the line is no {kind} of a split ({type(error).__name__}: {error})", row.where) from None
    return splits


def _question(values: dict[str, Any]) -> Question:
    answers = {key: tuple(_texts(values[key], key)) for key in ("correct", "incorrect")}
    return Question(**{**values, **answers, "prompt": tuple(values["prompt"])})


def _texts(value: Any, key: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise TypeError(f"{key} is no list of texts")
    return value


def _damaged(what: str, where: str) -> UserError:
    fix = "Build the data again with `lora-dpo data RECIPE`; the same recipe gives the same splits."
    return UserError(what, fix=fix, where=where)


def _content(one: Pair | Example) -> str:
    turns = [[turn["role"], turn["content"]] for turn in one.prompt]
    answers = [one.chosen, one.rejected] if isinstance(one, Pair) else [one.answer]
    return _dump([turns, *answers, one.group])


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
