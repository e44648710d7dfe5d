"""JSON files of the user, which may be damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lora_dpo.errors import UserError


def read_json(file: Path) -> dict[str, Any]:
    """Returns the object that a JSON file holds.

    Args:
        file: The file.

    Raises:
        UserError: It is not there, or holds something else.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"it holds {type(content).__name__}, not an object")
    except FileNotFoundError:
        raise UserError(f"{file} is missing.", fix="Copy it again from where it was made.") from None
    except (ValueError, OSError, RecursionError) as error:
        raise UserError(f"{file} cannot be read: {error}", fix="Copy it again from where it was made.") from None
    return content
