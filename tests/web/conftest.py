from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser

from tests.web.chromium import CHROMIUM, launched


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A browser for one file: while it is open, no asynchronous test can run in this process."""
    if CHROMIUM is None:
        pytest.skip("there is no chromium; on Debian: apt-get install -y --no-install-recommends chromium")
    with launched() as opened:
        yield opened
