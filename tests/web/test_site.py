"""The built pages in a browser, from the disk as the packages bring them: search, width, no other host."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.waiting import patience
from tools.site import build

pytest.importorskip("playwright", reason="playwright is not installed: `make setup` installs it")

from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.web

WIDTHS = (1280, 400)


@dataclass
class Site:
    """A browser's page over the site's files, all that it requested, and all errors that it showed."""

    folder: Path
    page: Page
    requested: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def open(self, name: str) -> None:
        self.page.set_viewport_size({"width": WIDTHS[0], "height": 900})
        self.page.goto((self.folder / name).as_uri())


@pytest.fixture(scope="module")
def site(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site") / "html"
    assert build(folder) == ""
    context = browser.new_context()
    context.set_default_timeout(patience(20) * 1000)
    site = Site(folder, context.new_page())
    context.on("request", lambda request: site.requested.append(request.url))
    context.on("weberror", lambda error: site.errors.append(str(error.error)))
    yield site
    context.close()


def test_no_page_is_wider_than_the_window(site: Site) -> None:
    too_wide = {}
    for file in sorted(site.folder.rglob("*.html")):
        name = str(file.relative_to(site.folder))
        site.open(name)
        for width in WIDTHS:
            site.page.set_viewport_size({"width": width, "height": 900})
            found = site.page.evaluate("document.documentElement.scrollWidth")
            if found > width:
                too_wide[f"{name} at {width}"] = found
    assert too_wide == {}


def test_a_search_finds_a_reason_and_opens_its_page(site: Site) -> None:
    site.open("index.html")
    site.page.locator("button.md-search__button").click()
    site.page.locator("input[placeholder]").fill("row_remap_pending")
    hit = site.page.locator("a[href*='reference/gpu-health.html']").filter(has_text="The reasons")
    hit.first.click()
    site.page.wait_for_url("**/reference/gpu-health.html*")


def test_nothing_was_asked_of_another_host_and_nothing_went_wrong(site: Site) -> None:
    site.open("explanation/architecture.html")
    assert site.page.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
    assert [url for url in site.requested if not url.startswith(("file:", "data:", "blob:", "about:"))] == []
    assert site.errors == []
