"""Manual pages in the language that `man` reads: its requests, and plain words made safe for it.

It knows no command and no setting.
"""

import re
from collections.abc import Iterable

_CODE = re.compile(r"`([^`]+)`")
_SIGNS = {"\\": "\\e", "-": "\\-", "'": "\\(aq", "`": "\\(ga", "^": "\\(ha", "~": "\\(ti"}
_PARAGRAPH = re.compile(r"\n\s*\n")


def heading(name: str, section: int, *, date: str, source: str) -> str:
    """Begin a page. `date`: as `2026-01-31`; `source`: what the page belongs to, with its version."""
    return f'.TH {_quoted(name.upper())} {section} "{date}" {_quoted(source)}'


def titled(title: str, *body: str) -> str:
    """A section."""
    return "\n".join([f".SH {_quoted(title)}", *body])


def subtitled(title: str, *body: str) -> str:
    """A part of a section."""
    return "\n".join([f".SS {_quoted(title)}", *body])


def paragraphs(words: str) -> str:
    """Words of people, whose paragraphs blank lines part; what stands in backquotes is bold."""
    return "\n.PP\n".join(words_of(part) for part in _PARAGRAPH.split(words.strip()))


def words_of(text: str) -> str:
    """One paragraph; what stands in backquotes is bold."""
    parts = _CODE.split(" ".join(text.split()))
    said = [bold(part) if place % 2 else escaped(part) for place, part in enumerate(parts)]
    return _guarded("".join(said))


def entry(term: str, *about: str) -> str:
    """A term and what is said of it. The term is roff already."""
    return "\n".join([".TP", term, *about])


def bold(text: str) -> str:
    """Words to be typed as they are."""
    return f"\\fB{escaped(text)}\\fR"


def italic(text: str) -> str:
    """Words that stand for others."""
    return f"\\fI{escaped(text)}\\fR"


def example(lines: Iterable[str]) -> str:
    """Lines to be shown as they are."""
    shown = [_guarded(escaped(line)) for line in lines]
    return "\n".join([".nf", ".RS 4", *shown, ".RE", ".fi"])


def escaped(text: str) -> str:
    """Text in which nothing steers roff; what roff would make prettier stays the sign that is typed."""
    return "".join(_SIGNS.get(letter, letter) for letter in text)


def _guarded(line: str) -> str:
    """A line that begins with a sign of roff's is no request."""
    return f"\\&{line}" if line.startswith(".") else line


def _quoted(text: str) -> str:
    return '"' + escaped(text).replace('"', "\\(dq") + '"'
