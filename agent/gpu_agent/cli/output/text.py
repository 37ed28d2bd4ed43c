"""Styled lines: made printable, measured, wrapped, and printed with or without colours.

Text from elsewhere is escaped here, so that no node's name can style or steer a terminal. Only a terminal
that shows colours loads rich; rich honours `NO_COLOR` and `TERM=dumb`.
"""

import json
import os
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence

from gpu_agent.records import dataclass


def printable(words: object) -> str:
    """Escape what cannot be seen; line ends too, so that one line stays one line."""
    text = str(words)
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


@dataclass(frozen=True, slots=True)
class Piece:
    """Words in one style, named as rich names it; empty is none."""

    text: str
    style: str = ""


Line = tuple[Piece, ...]
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
    for piece in _fit_pieces(_split_words(words), max(1, columns)):
        if taken + text_width(piece.text.rstrip()) > columns and current:
            parts.append(_trim(current))
            current, taken = [], 0
        current.append(piece)
        taken += text_width(piece.text)
    parts.append(_trim(current))
    return parts


def _split_words(words: Line) -> Iterator[Piece]:
    """Cut pieces behind each space."""
    for piece in words:
        start = 0
        for place, letter in enumerate(piece.text):
            if letter == " " and piece.text[place + 1 : place + 2] != " ":
                yield Piece(piece.text[start : place + 1], piece.style)
                start = place + 1
        if start < len(piece.text):
            yield Piece(piece.text[start:], piece.style)


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
    if not (sys.stdout.isatty() or os.environ.get("FORCE_COLOR")):
        sys.stdout.write("".join([f"{plain_text(one).rstrip()}\n" for one in lines]))
        return
    from rich.console import Console
    from rich.text import Text

    terminal = Console(highlight=False)
    for one in lines:
        drawn = Text.assemble(*((piece.text, piece.style) for piece in one))
        terminal.print(drawn, soft_wrap=True)


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
