"""The tables of `docs/`, as a test reads them."""

import re
from pathlib import Path

DOCS = Path(__file__).parent.parent / "docs"


def page(name: str) -> str:
    """Read the page of that name, in whichever of the four kinds it stands."""
    (found,) = DOCS.rglob(name)
    return found.read_text(encoding="utf-8")


def rows(document: str, heading: str, *, table: int = 0, below: str | None = None) -> list[list[str]]:
    """Read the cells of a table under a heading, and under one below it, without its head."""
    section = page(document).split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    if below is not None:
        section = section.split(f"\n### {below}\n", 1)[1].split("\n### ", 1)[0]
    tables = [part for part in section.split("\n\n") if part.strip().startswith("|")]
    lines = tables[table].strip().splitlines()
    return [[cell.strip() for cell in row.split("|")[1:-1]] for row in lines[2:]]


def quoted(cell: str) -> list[str]:
    """List what stands in backticks."""
    return re.findall(r"`([^`]+)`", cell)
