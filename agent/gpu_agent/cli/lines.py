"""Lines of styled words, and how much room they take: what commands hand to whoever draws.

Words from elsewhere are made printable here, so that no node's name can style a terminal. Draws nothing.
"""

import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from gpu_agent.cli.printable import printable


@dataclass(frozen=True, slots=True)
class Piece:
    """Words in one style, named as rich names it; empty is none."""

    text: str
    style: str = ""


Line = tuple[Piece, ...]
BLANK: Line = ()


def line(*pieces: object) -> Line:
    """A line of pieces; what is no piece is written down without a style."""
    return tuple(
        Piece(printable(one.text), one.style) if isinstance(one, Piece) else Piece(printable(one))
        for one in pieces
        if one not in ("", None)
    )


def plain(words: Line) -> str:
    """The words alone."""
    return "".join(piece.text for piece in words)


def room(text: str) -> int:
    """How many columns of a terminal a text takes: some letters take two, some none."""
    if text.isascii():
        return len(text)
    return sum(_columns(letter) for letter in text)


def width(words: Line) -> int:
    """How many columns a line takes."""
    return sum(room(piece.text) for piece in words)


def wrapped(words: Line, columns: int) -> list[Line]:
    """Break a line between words so that each part fits; a word that cannot fit is broken inside."""
    parts: list[Line] = []
    current: list[Piece] = []
    taken = 0
    for piece in _fitting(_words(words), max(1, columns)):
        if taken + room(piece.text.rstrip()) > columns and current:
            parts.append(_trimmed(current))
            current, taken = [], 0
        current.append(piece)
        taken += room(piece.text)
    parts.append(_trimmed(current))
    return parts


def _words(words: Line) -> Iterator[Piece]:
    """Cut pieces behind each space."""
    for piece in words:
        start = 0
        for place, letter in enumerate(piece.text):
            if letter == " " and piece.text[place + 1 : place + 2] != " ":
                yield Piece(piece.text[start : place + 1], piece.style)
                start = place + 1
        if start < len(piece.text):
            yield Piece(piece.text[start:], piece.style)


def _fitting(pieces: Iterable[Piece], columns: int) -> Iterator[Piece]:
    for piece in pieces:
        text = piece.text
        while room(text.rstrip()) > columns:
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


def joined(pieces: Iterable[Piece]) -> Line:
    """Make one piece of neighbours of one style."""
    parts: list[Piece] = []
    for piece in pieces:
        if parts and parts[-1].style == piece.style:
            parts[-1] = Piece(parts[-1].text + piece.text, piece.style)
        else:
            parts.append(piece)
    return tuple(parts)


def _trimmed(pieces: list[Piece]) -> Line:
    *most, last = pieces or [Piece("")]
    end = Piece(last.text.rstrip(), last.style)
    if end.text or not most:
        return joined((*most, end)) if end.text else ()
    return _trimmed(most)


def _columns(letter: str) -> int:
    if unicodedata.combining(letter) or unicodedata.category(letter) in ("Cf", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(letter) in "WF" else 1
