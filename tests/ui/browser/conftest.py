"""A real Chromium: Debian's, or whichever `LORA_DPO_CHROMIUM` names."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

CHROMIUM = os.environ.get("LORA_DPO_CHROMIUM") or shutil.which("chromium")
_NEEDED = {"chromium (launch/test.sh --browser installs it)": CHROMIUM, "playwright": find_spec("playwright")}
MISSING = [name for name, there in _NEEDED.items() if not there]
_OPTIONS = (
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--no-first-run", "--disable-dev-shm-usage",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.slow)
            if MISSING:
                item.add_marker(pytest.mark.skip(reason=f"NO BROWSER TESTS: {' and '.join(MISSING)} is missing"))


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=list(_OPTIONS))
        yield started
        started.close()


@pytest.fixture
def visitor(browser) -> Iterator[Callable]:
    """Returns a function that opens a page as a person of their own; at the end no page may have gone elsewhere."""
    contexts, asked, wrong = [], [], []

    def visit(url: str, **options):
        context = browser.new_context(**{"viewport": {"width": 1100, "height": 800}, **options})
        context.set_default_timeout(300_000)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: wrong.append(f"a dialog: {dialog.message}"))
        page.on("console", lambda said: wrong.append(said.text) if "Content Security Policy" in said.text else None)
        page.goto(url)
        return page

    yield visit
    for context in contexts:
        context.close()
    elsewhere = [url for url in asked if not url.startswith(("http://localhost:", "data:,"))]
    assert elsewhere == []
    assert wrong == []
