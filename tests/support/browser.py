"""The system's Chromium, driven by Playwright; skips (or fails in CI) where there is none."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, expect, sync_playwright

from tests.support.own_environment import unavailable
from tests.support.waiting import SECONDS

NAMES = ("chromium", "chromium-browser", "google-chrome")
# Five seconds are no time on a busy machine.
expect.set_options(timeout=SECONDS * 1000)


@contextmanager
def open_browser() -> Iterator[Browser]:
    """A headless browser of a profile of its own."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        unavailable("no Chromium: apt-get install chromium")
    with sync_playwright() as playwright:
        # Its sandbox does not start as root; all that it opens is our own server.
        browser = playwright.chromium.launch(
            executable_path=found, args=["--no-sandbox"], timeout=SECONDS * 1000
        )
        try:
            yield browser
        finally:
            browser.close()
