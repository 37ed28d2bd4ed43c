"""Bars that show a share at a glance, in the letters that whoever reads us can have.

Where the output's encoding lacks the letters, plainer ones stand for them. It draws no bar of a
share that is not known.
"""

import sys
from dataclasses import dataclass

from gpu_agent.cli.lines import BLANK, Line, Piece

_CROWDED, _FULL = 0.75, 0.92
"""From these shares on a bar changes its colour."""


@dataclass(frozen=True, slots=True)
class Letters:
    """The letters that are not ASCII, or what stands for them."""

    filled: str
    free: str
    degree: str
    branch: str
    """Stands before what belongs to the row above."""


RICH = Letters("█", "░", "°", "└")
PLAIN = Letters("#", ".", "", "-")


def letters(encoding: str | None = None) -> Letters:
    """Choose the letters that an encoding has; without one, stdout's."""
    wanted = f"{RICH.filled}{RICH.free}{RICH.degree}{RICH.branch}"
    try:
        wanted.encode(encoding or sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return PLAIN
    return RICH


def bar(share: float | None, cells: int, written: Letters) -> Line:
    """Draw a share between 0 and 1; what is above nothing has at least one cell."""
    if share is None:
        return BLANK
    bounded = min(1.0, max(0.0, share))
    filled = max(round(cells * bounded), int(bounded > 0))
    pieces = (Piece(written.filled * filled, _style(bounded)), Piece(written.free * (cells - filled), "dim"))
    return tuple(piece for piece in pieces if piece.text)


def _style(share: float) -> str:
    if share >= _FULL:
        return "red"
    return "yellow" if share >= _CROWDED else "cyan"
