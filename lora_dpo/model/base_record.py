"""What a trained adapter or model says of its base wherever it is copied to: `base_model.json` beside its weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_dpo.errors import UserError
from lora_dpo.files import write_json
from lora_dpo.model.location import find_file

_FILE = "base_model.json"


def write_base_record(folder: Path, model: Mapping[str, Any]) -> None:
    """Writes it.

    Args:
        folder: Where the trained weights are.
        model: Name, revision and `weights_sha256` of the base, as provenance.json has them.
    """
    write_json(folder / _FILE, dict(model))


def recorded_base_hash(place: str) -> str | None:
    """Returns the hash of the weights that an adapter or a model was trained on, or None where nothing says it.

    Args:
        place: Local folder or Hub id.

    Raises:
        UserError: The file is damaged.
    """
    file = find_file(place, _FILE)
    if file is None:
        return None
    try:
        return json.loads(file.read_text(encoding="utf-8"))["weights_sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"the file does not say what the base was ({type(error).__name__}: {error})",
            fix="Copy it again, or remove it; the base is then not checked.",
            where=str(file),
        ) from None
