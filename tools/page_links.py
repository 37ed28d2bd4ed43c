"""Links between the pages of docs/: the program's own sentences name a page by its title, a page links to it.

Help texts, settings and messages say `see *Encrypt it* in the documentation`: a package has the pages
elsewhere than the checkout, a wheel has none, and a title is found wherever they are. Documents of the
checkout, comments and docstrings may say `docs/howto/security.md`. What is generated from either into a page
gets links.
"""

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

DOCS = Path(__file__).parent.parent / "docs"
PATH = re.compile(r"(?P<quote>`?)docs/(?P<kind>[a-z]+)/(?P<name>[a-z-]+)\.md(?P=quote)")
"""A page's path in a sentence, with or without backquotes."""
TITLE = re.compile(r"\*(?P<title>[^*]+)\*\s+in\s+the\s+documentation")
"""A page's title in a sentence."""
_FENCED = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)


def linked(text: str, kind: str = "reference") -> str:
    """Write paths and titles of pages as links, for a page of that kind; blocks of code stay as they are."""

    def link(there: str, name: str) -> str:
        folder = "" if there == kind else f"../{there}/"
        return f"[{title(there, name)}]({folder}{name}.md)"

    def linked_part(part: str) -> str:
        by_path = PATH.sub(lambda found: link(found["kind"], found["name"]), part)
        return TITLE.sub(lambda found: link(*titles()[" ".join(found["title"].split())]), by_path)

    parts = _FENCED.split(text)
    return "".join(part if part.startswith("```") else linked_part(part) for part in parts)


@cache
def titles() -> Mapping[str, tuple[str, str]]:
    """Title of each page → its kind and its name."""
    pages = sorted(DOCS.glob("*/*.md"))
    return {title(page.parent.name, page.stem): (page.parent.name, page.stem) for page in pages}


@cache
def title(kind: str, name: str) -> str:
    """What a page is called in a sentence: its heading, up to the colon."""
    first, _, _ = (DOCS / kind / f"{name}.md").read_text(encoding="utf-8").partition("\n")
    return first.removeprefix("# ").partition(":")[0]
