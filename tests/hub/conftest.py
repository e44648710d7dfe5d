"""A local Hub, and what is published to it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from tests.hub.server import Hub, User

TOKEN = "hf_" + "Aa1" * 12
"""Of a user who may write; it must never be seen anywhere."""
READER = "hf_" + "Bb2" * 12
"""Of the same user, who may only read."""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A local Hub with the user `me`, also in `lab`, and two base models; this process and those it starts use it."""
    users = {TOKEN: User("me", orgs=("lab",)), READER: User("me", "read")}
    server = Hub(tmp_path / "hub", users).start()
    for base in ("org/base", "me/base"):
        server.repository(base).create(private=False)
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants._HF_DEFAULT_ENDPOINT, server.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield server
    server.stop()


@pytest.fixture
def client_environment(hub: Hub, tmp_path: Path) -> dict[str, str]:
    """The environment of a process that uses the local Hub, with nothing in its cache."""
    return {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_TOKEN": TOKEN,
    }
