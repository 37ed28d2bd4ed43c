"""The site builds, asks no other host for anything, and a link that leads nowhere fails it."""

import re
import shutil
from pathlib import Path

import pytest

from tools.site import ROOT, build


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site") / "html"
    assert build(folder) == ""
    return folder


def test_every_page_of_docs_is_in_the_navigation(site: Path) -> None:
    pages = {path.relative_to(ROOT / "docs").with_suffix(".html") for path in (ROOT / "docs").rglob("*.md")}
    front = (site / "index.html").read_text(encoding="utf-8")
    menu = re.findall(r'<a href="([^"#]+\.html)" class="md-nav__link', front)
    assert {Path(link) for link in menu} >= pages - {Path("index.html")}


def test_no_page_asks_another_host_for_anything(site: Path) -> None:
    asked = re.compile(r'<(?:script|link|img|iframe|source)\b[^>]*?(?:src|href)="(?:https?:)?//[^"]*"')
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    assert [found for page in pages for found in asked.findall(page.read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize("link", ["nowhere.md", "reference/settings.md#nowhere"])
def test_a_link_that_leads_nowhere_fails(tmp_path: Path, link: str) -> None:
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    with (tmp_path / "docs" / "index.md").open("a", encoding="utf-8") as index:
        index.write(f"\n[a link]({link})\n")
    said = build(tmp_path / "html", source=tmp_path)
    assert "index.md" in said
    assert "does not exist" in said
    assert "\x1b" not in said
