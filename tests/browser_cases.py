"""A browser for the tests of pages: opens a file, watches what it asks for, finds barriers."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install 'ghmdet[dev]'")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="needs a Chromium: apt-get install chromium, or any that is on the PATH"
)
SWITCHES = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
CONTROLS = "button, select, input, summary, a[href]"
Open = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=SWITCHES)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Open]:
    """Opens a page; at the end there was no message on its console, no failed request, none to the network."""
    troubles: list[str] = []
    contexts = []

    def open_page(
        path: Path, *, width: int = 1280, scheme: str = "light", script: bool = True, phone: bool = False
    ) -> Any:
        size = {"width": 390, "height": 844} if phone else {"width": width, "height": 900}
        touched = {"is_mobile": True, "has_touch": True} if phone else {}
        context = browser.new_context(
            viewport=size, color_scheme=scheme, java_script_enabled=script, **touched
        )
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: troubles.append(message.text))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        # A picture that is not wanted any more, since the page went on before it was there, is no trouble.
        page.on(
            "requestfailed",
            lambda request: (
                None if request.failure == "net::ERR_ABORTED" else troubles.append(request.url[:80])
            ),
        )
        page.on(
            "request",
            lambda request: (
                troubles.append(request.url[:80]) if not request.url.startswith(("file:", "data:")) else None
            ),
        )
        page.goto(path.as_uri())
        if script:
            wait_for_drawings(page)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not troubles


def wait_for_drawings(page: Any) -> None:
    boxes = "[...document.querySelectorAll('.drawing')]"
    missing = f"{boxes}.filter((one) => one.checkVisibility() && !one.querySelector('.drawn')).length"
    # Not wait_for_function: the page forbids the evaluation that it is made of.
    for _ in range(500):
        if not page.evaluate(missing):
            return
        page.wait_for_timeout(20)
    pytest.fail(f"{page.evaluate(missing)} drawings are not drawn after ten seconds")


def press(page: Any, locator: Any, *keys: str) -> None:
    locator.focus()
    for key in keys:
        page.keyboard.press(key)


def grave(page: Any) -> list[str]:
    """axe's violations that are serious or critical."""
    violations = axe.Axe().run(page).response["violations"]
    return [
        f"{one['id']}: {one['nodes'][0]['html'][:200]}"
        for one in violations
        if one["impact"] in ("serious", "critical")
    ]
