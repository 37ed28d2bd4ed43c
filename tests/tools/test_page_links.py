import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.documents import DOCS
from tools.page_links import PATH, TITLE, linked, titles

PAGES = sorted(DOCS.rglob("*.md"))


@pytest.mark.parametrize(
    ("sentence", "kind", "written"),
    [
        ("`docs/howto/security.md` has it", "howto", "[Encrypt it](security.md) has it"),
        ("(docs/howto/security.md)", "reference", "([Encrypt it](../howto/security.md))"),
        ("in `docs/reference/settings.md`.", "reference", "in [Settings](settings.md)."),
        ("(see *Encrypt it* in the documentation)", "reference", "(see [Encrypt it](../howto/security.md))"),
        ("*Log\nevents* in the\ndocumentation has it", "reference", "[Log events](logs.md) has it"),
        ("```sh\ncat docs/howto/security.md\n```", "howto", "```sh\ncat docs/howto/security.md\n```"),
    ],
)
def test_the_path_of_a_page_becomes_a_link_outside_of_code(sentence: str, kind: str, written: str) -> None:
    assert linked(sentence, kind) == written


def test_a_page_that_is_not_there_is_an_error() -> None:
    with pytest.raises(FileNotFoundError):
        linked("docs/howto/nothing.md")
    with pytest.raises(KeyError):
        linked("see *Nothing* in the documentation")


def test_no_two_pages_have_one_title_and_the_site_calls_each_by_it() -> None:
    pages = list(DOCS.glob("*/*.md"))
    assert len(titles()) == len(pages)
    named = re.findall(
        r'(?m)^ +- "?(.+?)"?: ([a-z]+)/([a-z-]+)\.md$', (DOCS.parent / "mkdocs.yml").read_text()
    )
    called = {(kind, name): words.partition(":")[0] for words, kind, name in named}
    assert {title for title in titles_in_messages() if called[titles()[title]] != title} == set()


def strings_of_the_program() -> Iterator[tuple[Path, str]]:
    """What the program may show: its strings, without docstrings."""
    for source in sorted((DOCS.parent / "agent/gpu_agent").rglob("*.py")):
        tree = ast.parse(source.read_text(encoding="utf-8"))
        bare = {id(one.value) for one in ast.walk(tree) if isinstance(one, ast.Expr)}
        for one in ast.walk(tree):
            if isinstance(one, ast.Constant) and isinstance(one.value, str) and id(one) not in bare:
                yield source, one.value


def titles_in_messages() -> set[str]:
    return {found["title"] for _, text in strings_of_the_program() for found in TITLE.finditer(text)}


def test_no_message_names_a_page_by_its_path_which_only_a_checkout_has() -> None:
    assert [(str(source), text) for source, text in strings_of_the_program() if PATH.search(text)] == []
    systemd = DOCS.parent / "systemd"
    written = [
        *(DOCS / "reference/schema").glob("*.json"),
        *systemd.glob("*.example"),
        *systemd.glob("*.service"),
    ]
    assert [path.name for path in written if PATH.search(path.read_text(encoding="utf-8"))] == []


def test_each_title_in_a_message_is_that_of_a_page() -> None:
    assert len(titles_in_messages()) > 10
    assert titles_in_messages() - set(titles()) == set()


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
