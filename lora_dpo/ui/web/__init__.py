"""Pages in a browser: collect, compare and chat, without anything from elsewhere."""

from __future__ import annotations

from importlib.util import find_spec

from lora_dpo.errors import UserError


def check_installed() -> None:
    """Checks that what serves the pages is installed.

    Raises:
        UserError: It is not.
    """
    missing = [name for name in ("starlette", "uvicorn") if find_spec(name) is None]
    if missing:
        raise UserError(
            f"--web needs {' and '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed.",
            fix="Run: pip install 'lora-dpo[ui]'",
        )
