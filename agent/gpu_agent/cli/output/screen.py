"""Lines that are redrawn in place on a terminal, or shown as a line for each change."""

import os
import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Self, TextIO

from gpu_agent.cli.output.text import (
    Line,
    Piece,
    cut_line,
    line,
    print_lines,
    shows_colours,
    styled_text,
    wrap_after,
)
from gpu_agent.cli.output.units import clock

_HIDE_CURSOR, _SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"
_ENTER_SCREEN, _LEAVE_SCREEN = "\x1b[?1049h", "\x1b[?1049l"
_HOME, _ERASE_LINE, _ERASE_BELOW = "\x1b[H", "\x1b[K", "\x1b[J"


class LiveLines:
    """Lines on a terminal, for as long as the block lasts; `whole_screen` uses all of it for them.

    Otherwise they stay below what is printed with `print_above`.
    """

    def __init__(self, *, whole_screen: bool = False, terminal: TextIO | None = None) -> None:
        self._whole_screen = whole_screen
        self._terminal = terminal or sys.stdout
        self._shown: Sequence[Line] = ()
        self._began = False
        self._height = 0
        """How many lines are drawn, the cursor being in the last."""

    def __enter__(self) -> Self:
        """Leave the terminal as it is until something is drawn: an error before that stays on it."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Restore the terminal, cursor and all."""
        if not self._began:
            return
        end = _LEAVE_SCREEN if self._whole_screen else "\r\n" if self._height else ""
        self._write(_SHOW_CURSOR + end)

    def draw(self, lines: Iterable[Line]) -> None:
        """Replace the lines; what the terminal has no room for is cut off."""
        self._shown = tuple(lines)
        self._write(self._to_begin() + self._drawn())

    def print_above(self, lines: Iterable[Line]) -> None:
        """Print lines that stay, and the others below them again."""
        printed = "".join(f"{self._one(each)}\r\n" for each in lines)
        self._write(self._to_begin() + printed + self._drawn())

    def _to_begin(self) -> str:
        if not self._began:
            self._began = True
            return f"{_ENTER_SCREEN}{_HIDE_CURSOR}{_HOME}" if self._whole_screen else f"{_HIDE_CURSOR}\r"
        if self._whole_screen:
            return _HOME
        return f"\r\x1b[{self._height - 1}A" if self._height > 1 else "\r"

    def _drawn(self) -> str:
        shown = self._shown[: shutil.get_terminal_size().lines]
        self._height = len(shown)
        return "\r\n".join(map(self._one, shown)) + _ERASE_BELOW

    def _one(self, words: Line) -> str:
        cut = cut_line(words, shutil.get_terminal_size().columns)
        return styled_text(cut, colours=shows_colours(self._terminal)) + _ERASE_LINE

    def _write(self, text: str) -> None:
        self._terminal.write(text)
        self._terminal.flush()


def can_redraw() -> bool:
    """Say whether stdout is a terminal whose cursor can be moved."""
    known = sys.platform != "win32" and os.environ.get("TERM") not in ("dumb", "unknown")
    return sys.stdout.isatty() and known


def print_changes(changes: Iterable[Line]) -> None:
    """Print a line for each change, with the time."""
    print_lines(one for words in changes for one in timed_lines(words, None))


def timed_lines(words: Line, columns: int | None) -> list[Line]:
    """Put the time of day before a line; what does not fit goes on below it."""
    now = time.time()
    return wrap_after(line(Piece(f"{clock(now, now)}  ", "dim")), words, columns)
