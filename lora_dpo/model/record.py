"""`provenance.json`: what a run, an adapter or a model says of where it comes from, wherever it is copied to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_dpo.errors import UserError
from lora_dpo.files import write_json
from lora_dpo.model.location import find_file

RECORD = "provenance.json"
MANIFEST = "manifest.json"
"""Lists the files of a checkpoint, or of a repository that lora-dpo has published, with their hashes."""


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Writes it."""
    write_json(folder / RECORD, dict(record))


def read_record(place: str | Path, revision: str | None = None) -> dict[str, Any] | None:
    """Reads it.

    Args:
        place: Local folder or Hub id.
        revision: Branch, tag or commit of the repository; None is the default branch.

    Returns:
        The record, or None where there is none.

    Raises:
        UserError: The file is damaged.
    """
    file = find_file(str(place), RECORD, revision)
    if file is None:
        return None
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        _check(record)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"the file does not say what the base was ({type(error).__name__}: {error})",
            fix="Copy it again, or remove it; the base is then not checked.",
            where=str(file),
        ) from None
    return record


def _check(record: Any) -> None:
    """Raises a KeyError or TypeError where something is missing that lineage checks go by."""
    for part in (record["model"], *record.get("parents", []), *record.get("adapters", [])):
        part["weights_sha256"]  # noqa: B018 - looked up alone
        if part.get("provenance") is not None:
            _check(part["provenance"])
