"""Pages in a browser: collect, compare and chat, without anything from elsewhere."""

from __future__ import annotations

from importlib.util import find_spec

from lora_dpo.errors import UserError


def check_web(**others: object) -> None:
    """Checks that a page can be served instead of what a verb does without `--web`.

    Args:
        others: Options that have no meaning for a page, and their values.

    Raises:
        UserError: One of them was given, or what serves the pages is not installed.
    """
    if given := [name for name, value in others.items() if value]:
        raise UserError(f"--web serves a page, where --{given[0]} has no meaning.", fix="Leave one of them out.")
    missing = [name for name in ("starlette", "uvicorn") if find_spec(name) is None]
    if missing:
        raise UserError(
            f"--web needs {' and '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed.",
            fix="Run: pip install 'lora-dpo[ui]'",
        )
