"""Open report pages in a headless Chromium, which Playwright drives.

Playwright is a package of the `test` extra. The browser is the system's, or Playwright's own if that is installed.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

try:
    from playwright.sync_api import Browser, Page, sync_playwright
except ModuleNotFoundError:
    sync_playwright = None  # type: ignore[assignment]

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--hide-scrollbars",
]


def lacking() -> str:
    """Say what to install before these tests can run; empty if nothing is missing."""
    if sync_playwright is None:
        return "install Playwright: pip install -e '.[test]'"
    if CHROMIUM is None:
        with sync_playwright() as playwright:
            if not Path(playwright.chromium.executable_path).exists():
                return "install Chromium: apt-get install chromium, or playwright install chromium"
    return ""


@contextmanager
def browser() -> Iterator[Browser]:
    """Start a browser, and end it."""
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        try:
            yield started
        finally:
            started.close()


class Window:
    """Hold one page of a browser, and what went wrong in it."""

    def __init__(self, started: Browser) -> None:
        self.page: Page = started.new_page()
        self.page.set_default_timeout(60_000)
        self.faults: list[str] = []
        self.page.on("console", lambda message: self.faults.append(message.text))
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))

    def open(self, page: Path, *, width: int = 1200, height: int = 900, dark: bool = False) -> None:
        """Show a page from the disk, on a screen of this size."""
        self.faults.clear()
        self.page.set_viewport_size({"width": width, "height": height})
        self.page.emulate_media(media="screen", color_scheme="dark" if dark else "light")
        self.page.goto(page.resolve().as_uri())

    def run(self, script: str, argument: object = None) -> Any:
        """Evaluate an expression, or call a function with an argument, in the page."""
        return self.page.evaluate(script, argument)

    def until(self, condition: str) -> None:
        """Wait for an expression to be true: three seconds at most."""
        for _ in range(60):
            if self.run(condition):
                return
            self.page.wait_for_timeout(50)
        raise AssertionError(condition)

    def seen(self, selector: str) -> int:
        """Count the elements that can be seen."""
        return int(
            self.run(
                "selector => [...document.querySelectorAll(selector)].filter(e => e.checkVisibility()).length",
                selector,
            )
        )
