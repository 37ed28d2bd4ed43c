"""Output that is redrawn in place on a terminal: whole pages, and one status line on stderr."""

import shutil
import sys
from collections.abc import Iterable
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from gpu_agent.cli.output.text import Line

# Lines that are redrawn in place on a terminal.


class LiveLines:
    """The lines, for as long as the block lasts; `whole_screen` takes the terminal for them alone."""

    def __init__(self, console: Console, *, whole_screen: bool = False) -> None:
        self._live = Live(console=console, auto_refresh=False, screen=whole_screen)

    def __enter__(self) -> Self:
        """Take the terminal."""
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the terminal back as it was, cursor and all."""
        self._live.stop()

    def draw(self, lines: Iterable[Line]) -> None:
        """Put these lines in the place of those before."""
        texts = (
            Text.assemble(*((piece.text, piece.style) for piece in one), no_wrap=True, overflow="ellipsis")
            for one in lines
        )
        self._live.update(Group(*texts), refresh=True)


# One line that says how things stand: redrawn in place on a terminal, else a line for each change.
#
# It goes to stderr, where it disturbs nobody who reads the command's output.


_ERASE = "\r\x1b[K"


class StatusLine:
    """The line; gone when its block ends, or said for good where there is no terminal."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._said = ""
        self._drawn = False

    def __enter__(self) -> Self:
        """Begin with nothing said."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the line away."""
        if self._drawn:
            self._write(_ERASE)

    def say(self, words: str, *, left: str = "", more: str = "") -> None:
        """Say how things stand; how much time is `left` is no change, and shown on terminals only.

        What there is no room for on a terminal is the end of `more`.
        """
        if self._quiet:
            return
        if sys.stderr.isatty():
            self._drawn = True
            width = shutil.get_terminal_size().columns - 1
            self._write(f"{_ERASE}{f'{words}{left}{more}'[:width]}")
        elif words + more != self._said:
            self._write(f"{words}{more}\n")
        self._said = words + more

    @staticmethod
    def _write(text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()
