"""Styled lines: made printable, measured, wrapped, and printed with or without colours.

Text from elsewhere is escaped here, so that no node's name can style or steer a terminal. Colours honour
`NO_COLOR`, `FORCE_COLOR` and `TERM=dumb`.
"""

import json
import os
import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TextIO

from gpu_agent.records import dataclass


def printable(words: object) -> str:
    """Escape what cannot be seen; line ends too, so that one line stays one line."""
    text = str(words)
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


@dataclass(frozen=True, slots=True)
class Piece:
    """Words in one style, such as `bold red`; empty is none."""

    text: str
    style: str = ""


_CODES = {
    "bold": "1",
    "dim": "2",
    **{
        colour: str(code)
        for code, colour in enumerate(("red", "green", "yellow", "blue", "magenta", "cyan"), 31)
    },
}
"""The terminal's codes (ECMA-48) by the words of a style."""
Line = tuple[Piece, ...]
_UNIT = re.compile(r"(?:s|min|h|d|ms|W|%|[kKMGT]i?B)(?![A-Za-z0-9])")
BLANK: Line = ()


def line(*pieces: object) -> Line:
    """Make a line; what is no piece becomes text without a style."""
    return tuple(
        [
            Piece(printable(one.text), one.style) if isinstance(one, Piece) else Piece(printable(one))
            for one in pieces
            if one not in ("", None)
        ]
    )


def plain_text(words: Line) -> str:
    """Return the words without their styles."""
    return "".join([piece.text for piece in words])


def separate(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """Yield pieces with a semicolon between them."""
    for index, piece in enumerate(pieces):
        if index:
            yield Piece("; ")
        yield piece


def join_blocks(blocks: Iterable[Sequence[Line]]) -> list[Line]:
    """Join blocks of lines to a page, with a blank line between those that are not empty."""
    page: list[Line] = []
    for block in blocks:
        page += [*([BLANK] if page and block else []), *block]
    return page


def text_width(text: str) -> int:
    """Count the terminal columns that a text takes: some letters take two, some none."""
    if text.isascii():
        return len(text)
    return sum(_columns(letter) for letter in text)


def line_width(words: Line) -> int:
    """How many columns a line takes."""
    return text_width(plain_text(words))


def wrap(words: Line, columns: int | None) -> list[Line]:
    """Break a line between words so that each part fits; a word that cannot fit is broken inside.

    Without a terminal (None) a line is as long as it is.
    """
    if columns is None or line_width(words) <= columns:
        return [_trim(list(words))]
    parts: list[Line] = []
    current: list[Piece] = []
    taken = 0
    for word in _whole_words(_split_words(words)):
        width = line_width(_trim(list(word)))
        fits = width <= max(1, columns)
        for piece in word if fits else _fit_pieces(word, max(1, columns)):
            if taken + (width if fits else text_width(piece.text.rstrip())) > columns and current:
                parts.append(_trim(current))
                current, taken = [], 0
            current.append(piece)
            taken += text_width(piece.text)
            width -= text_width(piece.text)
    parts.append(_trim(current))
    return parts


def wrap_after(prefix: Line, words: Line, columns: int | None) -> list[Line]:
    """Put words behind a prefix; what does not fit goes on below the first of them."""
    indent = line_width(prefix)
    first, *more = wrap(words, None if columns is None else columns - indent)
    return [(*prefix, *first), *((Piece(" " * indent), *part) for part in more)]


def _whole_words(pieces: Iterable[Piece]) -> Iterator[Line]:
    """Yield words, which may be of several pieces: a change of style is no place to break a line."""
    word: list[Piece] = []
    for piece in pieces:
        word.append(piece)
        if piece.text.endswith(" "):
            yield tuple(word)
            word = []
    if word:
        yield tuple(word)


def _split_words(words: Line) -> Iterator[Piece]:
    """Cut pieces behind each space, but for that between a number and its unit."""
    for piece in words:
        start = 0
        for place, letter in enumerate(piece.text):
            if letter == " " and _may_break(piece.text, place):
                yield Piece(piece.text[start : place + 1], piece.style)
                start = place + 1
        if start < len(piece.text):
            yield Piece(piece.text[start:], piece.style)


def _may_break(text: str, space: int) -> bool:
    """Whether a line may end at a space: no other one follows, and it is in no figure such as `4 s`."""
    if text[space + 1 : space + 2] == " ":
        return False
    return not text[:space][-1:].isdigit() or _UNIT.match(text, space + 1) is None


def _fit_pieces(pieces: Iterable[Piece], columns: int) -> Iterator[Piece]:
    for piece in pieces:
        text = piece.text
        while text_width(text.rstrip()) > columns:
            cut = _longest(text, columns)
            yield Piece(text[:cut], piece.style)
            text = text[cut:]
        yield Piece(text, piece.style)


def _longest(text: str, columns: int) -> int:
    taken = 0
    for place, letter in enumerate(text):
        taken += _columns(letter)
        if taken > columns:
            return max(1, place)
    return len(text)


def join_pieces(pieces: Iterable[Piece]) -> Line:
    """Make one piece of neighbours of one style."""
    parts: list[Piece] = []
    for piece in pieces:
        if parts and parts[-1].style == piece.style:
            parts[-1] = Piece(parts[-1].text + piece.text, piece.style)
        else:
            parts.append(piece)
    return tuple(parts)


def _trim(pieces: list[Piece]) -> Line:
    *most, last = pieces or [Piece("")]
    end = Piece(last.text.rstrip(), last.style)
    if end.text or not most:
        return join_pieces((*most, end)) if end.text else ()
    return _trim(most)


def _columns(letter: str) -> int:
    if unicodedata.combining(letter) or unicodedata.category(letter) in ("Cf", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(letter) in "WF" else 1


def terminal_columns() -> int | None:
    """Return the width of the terminal that stdout goes to; None where it is no terminal."""
    import shutil

    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def print_json(document: Mapping[str, object]) -> None:
    """Print a document for programs."""
    print(json.dumps(document, indent=2))


def print_lines(lines: Iterable[Line]) -> None:
    """Print lines as they are laid out; styled on a terminal, or with `FORCE_COLOR`."""
    colours = shows_colours(sys.stdout)
    sys.stdout.write("".join([f"{styled_text(one, colours=colours).rstrip()}\n" for one in lines]))


def shows_colours(stream: TextIO) -> bool:
    """Whether what is written to a stream may be styled."""
    if os.environ.get("NO_COLOR"):
        return False
    plain = os.environ.get("TERM") in ("dumb", "unknown") or (
        sys.platform == "win32" and "WT_SESSION" not in os.environ  # an old console shows the codes
    )
    return bool(os.environ.get("FORCE_COLOR")) or (stream.isatty() and not plain)


def styled_text(words: Line, *, colours: bool) -> str:
    """Return a line with the codes that style it on a terminal, without them where it has no colours."""
    if not colours:
        return plain_text(words)
    return "".join([_styled(piece) for piece in words])


def _styled(piece: Piece) -> str:
    if not piece.style:
        return piece.text
    codes = ";".join(_CODES[word] for word in piece.style.split())
    return f"\x1b[{codes}m{piece.text}\x1b[0m"


def cut_line(words: Line, columns: int) -> Line:
    """Return as much of a line as fits, with an ellipsis where that is not all."""
    if line_width(words) <= columns:
        return words
    shown: list[Piece] = []
    room = columns - 1
    for piece in words:
        if text_width(piece.text) > room:
            cut = _longest(piece.text, room) if room > 0 else 0
            return (*shown, Piece(f"{piece.text[:cut]}…", piece.style))
        shown.append(piece)
        room -= text_width(piece.text)
    return tuple(shown)


_CROWDED, _FULL = 0.75, 0.92
"""From these shares on a bar changes its colour."""


@dataclass(frozen=True, slots=True)
class Glyphs:
    """Letters that are not ASCII, or their substitutes."""

    filled: str
    free: str
    degree: str
    branch: str
    """Before a row that belongs to the row above."""


UNICODE_GLYPHS = Glyphs("█", "░", "°", "└")
ASCII_GLYPHS = Glyphs("#", ".", "", "-")


def glyphs(encoding: str | None = None) -> Glyphs:
    """Choose the letters that an encoding has (default: that of stdout)."""
    wanted = f"{UNICODE_GLYPHS.filled}{UNICODE_GLYPHS.free}{UNICODE_GLYPHS.degree}{UNICODE_GLYPHS.branch}"
    try:
        wanted.encode(encoding or sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return ASCII_GLYPHS
    return UNICODE_GLYPHS


def bar(share: float | None, cells: int, written: Glyphs) -> Line:
    """Draw a share between 0 and 1, more than 0 with one cell at least; no bar where it is unknown."""
    if share is None:
        return BLANK
    bounded = min(1.0, max(0.0, share))
    filled = max(round(cells * bounded), int(bounded > 0))
    pieces = (
        Piece(written.filled * filled, _bar_style(bounded)),
        Piece(written.free * (cells - filled), "dim"),
    )
    return tuple(piece for piece in pieces if piece.text)


def _bar_style(share: float) -> str:
    if share >= _FULL:
        return "red"
    return "yellow" if share >= _CROWDED else "cyan"
