"""Links between the pages of docs/: the program's own sentences name a page by its path, a page links to it.

Help texts, settings and log messages say `docs/howto/security.md`: that is where the page lies in the
checkout, and below /usr/share/doc/gpu-agent on a machine. What is generated from them into a page gets links.
"""

import re
from functools import cache
from pathlib import Path

DOCS = Path(__file__).parent.parent / "docs"
PATH = re.compile(r"(?P<quote>`?)docs/(?P<kind>[a-z]+)/(?P<name>[a-z-]+)\.md(?P=quote)")
"""A page's path in a sentence, with or without backquotes."""
_FENCED = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)


def linked(text: str, kind: str = "reference") -> str:
    """Write paths of pages as links, for a page of that kind; blocks of code stay as they are."""

    def link(found: re.Match[str]) -> str:
        folder = "" if found["kind"] == kind else f"../{found['kind']}/"
        return f"[{title(found['kind'], found['name'])}]({folder}{found['name']}.md)"

    parts = _FENCED.split(text)
    return "".join(part if part.startswith("```") else PATH.sub(link, part) for part in parts)


@cache
def title(kind: str, name: str) -> str:
    """What a page is called in a sentence: its heading, up to the colon."""
    first, _, _ = (DOCS / kind / f"{name}.md").read_text(encoding="utf-8").partition("\n")
    return first.removeprefix("# ").partition(":")[0]
