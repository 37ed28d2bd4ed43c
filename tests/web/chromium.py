"""The machine's own Chromium, and the screens on which pages are looked at."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, ViewportSize, sync_playwright

CHROMIUM = shutil.which("chromium")
DESK: ViewportSize = {"width": 1440, "height": 900}
TELEPHONE: ViewportSize = {"width": 400, "height": 800}
SIZES = {"desk": DESK, "telephone": TELEPHONE}


@contextmanager
def launched() -> Iterator[Browser]:
    """Launch it; while it runs, no asynchronous test can run in this process."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        yield browser
        browser.close()
