"""The Hub token: from the environment, or from a `.env` file; never printed, never stored."""

from __future__ import annotations

import os

from dotenv import dotenv_values, find_dotenv

TOKEN_NAMES = ("HF_TOKEN", "ACCESS_TOKEN")
"""Variables that may hold the token, the first one first."""


def load_token() -> None:
    """Makes the token known to `huggingface_hub` through `HF_TOKEN`.

    Looked up in this order: `HF_TOKEN`, then `ACCESS_TOKEN` in the environment; the same names in the nearest
    `.env` file from the working directory upwards. Nothing else in the file is read.
    """
    file = find_dotenv(usecwd=True)
    for values in (os.environ, dotenv_values(file) if file else {}):
        token = next((values[name] for name in TOKEN_NAMES if values.get(name)), None)
        if token:
            os.environ["HF_TOKEN"] = token.strip()
            return
