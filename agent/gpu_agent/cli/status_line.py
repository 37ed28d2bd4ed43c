"""One line that says how things stand: redrawn in place on a terminal, else a line for each change.

It goes to stderr, where it disturbs nobody who reads the command's output.
"""

import shutil
import sys
from types import TracebackType
from typing import Self

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
