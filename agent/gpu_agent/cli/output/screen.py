"""Pages that are redrawn in place on a terminal, or shown as a line for each change."""

import os
import sys
import time
from collections.abc import Iterable
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from gpu_agent.cli.output.text import Line, Piece, line, print_lines
from gpu_agent.cli.output.units import clock


class LiveLines:
    """Lines on a terminal, for as long as the block lasts; `whole_screen` uses all of it for them."""

    def __init__(self, console: Console, *, whole_screen: bool = False) -> None:
        self._live = Live(console=console, auto_refresh=False, screen=whole_screen)

    def __enter__(self) -> Self:
        """Start drawing."""
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Restore the terminal, cursor and all."""
        self._live.stop()

    def draw(self, lines: Iterable[Line]) -> None:
        """Replace the lines."""
        texts = (
            Text.assemble(*((piece.text, piece.style) for piece in one), no_wrap=True, overflow="ellipsis")
            for one in lines
        )
        self._live.update(Group(*texts), refresh=True)


def can_redraw() -> bool:
    """Say whether stdout is a terminal whose cursor can be moved."""
    return sys.stdout.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")


def print_changes(changes: Iterable[Line]) -> None:
    """Print a line for each change, with the time."""
    now = time.time()
    print_lines(line(Piece(f"{clock(now, now)}  ", "dim"), *one) for one in changes)


def fit_lines(page: list[Line], lines: int) -> list[Line]:
    """Cut a page to so many lines, the last of which counts those that are left out."""
    if len(page) <= lines:
        return page
    shown = max(1, lines - 1)
    return [*page[:shown], line(Piece(f"({len(page) - shown} lines: no room here)", "dim"))]
