import re
from pathlib import Path

import pytest

from tests.documents import DOCS
from tools.page_links import PATH, linked

PAGES = sorted(DOCS.rglob("*.md"))


@pytest.mark.parametrize(
    ("sentence", "kind", "written"),
    [
        ("`docs/howto/security.md` has it", "howto", "[Encrypt it](security.md) has it"),
        ("(docs/howto/security.md)", "reference", "([Encrypt it](../howto/security.md))"),
        ("in `docs/reference/settings.md`.", "reference", "in [Settings](settings.md)."),
        ("```sh\ncat docs/howto/security.md\n```", "howto", "```sh\ncat docs/howto/security.md\n```"),
    ],
)
def test_the_path_of_a_page_becomes_a_link_outside_of_code(sentence: str, kind: str, written: str) -> None:
    assert linked(sentence, kind) == written


def test_a_page_that_is_not_there_is_an_error() -> None:
    with pytest.raises(FileNotFoundError):
        linked("docs/howto/nothing.md")


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_no_page_names_another_by_its_path_alone(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert linked(text, page.parent.name) == text


def test_every_page_that_a_message_or_another_document_names_is_there() -> None:
    root = DOCS.parent
    documents = [*root.glob("*.md"), *root.glob("packaging/**/*.md"), *root.glob("systemd/*")]
    sources = [*(root / "agent").rglob("*.py"), *root.glob("examples/*"), *documents]
    named = {
        found[0].strip("`")
        for source in sources
        for found in PATH.finditer(source.read_text(encoding="utf-8"))
    }
    assert len(named) > 10
    assert [path for path in sorted(named) if not (DOCS.parent / path).is_file()] == []


OUTSIDE = [DOCS.parent / name for name in ("README.md", "CONTRIBUTING.md", "packaging/README.md")]
"""Pages that are not of the site, whose links its builder does not follow."""


@pytest.mark.parametrize("document", OUTSIDE, ids=lambda path: path.name)
def test_a_link_of_a_page_outside_the_site_leads_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        found = document.parent / name if name else document
        assert found.exists(), target
        assert not anchor or anchor in anchors(found), target


def anchors(document: Path) -> set[str]:
    headings = re.findall(r"(?m)^#+ (.+)$", document.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
