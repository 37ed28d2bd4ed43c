"""What `docs/settings.md` says of every key, read from its tables: the one place where people write it down.

Example files and manual pages are made out of it. It reads that page's form only, and judges nothing: a
test holds the page to the source.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

HEADINGS: Mapping[str, str] = {"agent": "The agent", "registry": "The registry"}
_ROW = re.compile(r"^\| `(?P<key>[^`]+)` \|(?P<cells>.*)\|$", re.MULTILINE)
_WITHIN = re.compile(r"^### `\[(?P<table>[a-z_]+)\]`\n", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class DocumentedKey:
    """One row. Its words are Markdown."""

    key: str
    kind: str
    """Its type, with its unit and its bounds."""
    default: str | None
    """As TOML writes it; None where there is none."""
    required: bool
    variable: str
    meaning: str


@dataclass(frozen=True, slots=True)
class DocumentedTable:
    """The keys inside one table of the file, and what is said above them."""

    name: str
    about: str
    keys: tuple[DocumentedKey, ...]


@dataclass(frozen=True, slots=True)
class DocumentedHalf:
    """All that one half of the program can be told."""

    keys: tuple[DocumentedKey, ...]
    tables: tuple[DocumentedTable, ...]


def documented(document: str, component: str) -> DocumentedHalf:
    """Read one half's keys from the page."""
    section = document.split(f"\n## {HEADINGS[component]}\n", 1)[1].split("\n## ", 1)[0]
    above, *parts = _WITHIN.split(section)
    tables = [
        DocumentedTable(name, _first_paragraph(text), tuple(_keys(text)))
        for name, text in zip(parts[::2], parts[1::2], strict=True)
    ]
    return DocumentedHalf(tuple(_keys(above)), tuple(tables))


def _keys(section: str) -> Iterator[DocumentedKey]:
    for row in _ROW.finditer(section):
        kind, default, variable, meaning = (cell.strip() for cell in re.split(r"(?<!\\)\|", row["cells"]))
        stated = re.fullmatch(r"`(.+)`", default)
        yield DocumentedKey(
            key=row["key"],
            kind=kind,
            default=None if stated is None else stated[1],
            required=default == "required",
            variable=variable.strip("`"),
            meaning=meaning.replace("\\|", "|"),
        )


def _first_paragraph(section: str) -> str:
    return section.strip().split("\n\n", 1)[0].replace("\n", " ")
