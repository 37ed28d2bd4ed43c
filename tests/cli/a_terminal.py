"""A terminal in front of the command under test: what is typed there, and what it shows."""

import os
import pty
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest


class Terminal:
    """The side of a person."""

    def __init__(self, master: int) -> None:
        self._master = master

    def type(self, words: str) -> None:
        """Type a line."""
        os.write(self._master, f"{words}\n".encode())

    def said(self) -> str:
        """All that has been shown, as the terminal was told to show it."""
        os.set_blocking(self._master, False)
        shown = b""
        while True:
            try:
                shown += os.read(self._master, 65536)
            except OSError:
                return shown.decode()


@contextmanager
def terminal(monkeypatch: pytest.MonkeyPatch, *streams: str, columns: int = 80) -> Iterator[Terminal]:
    """Put a terminal in the place of these streams of `sys` while the block lasts."""
    master, slave = pty.openpty()
    with ExitStack() as undo, monkeypatch.context() as patch:
        for descriptor in (master, slave):
            undo.callback(os.close, descriptor)
        patch.setenv("COLUMNS", str(columns))
        patch.setenv("TERM", "xterm-256color")
        for name in streams:
            mode = "r" if name == "stdin" else "w"
            stream = undo.enter_context(os.fdopen(os.dup(slave), mode, encoding="utf-8"))
            patch.setattr(f"sys.{name}", stream)
        yield Terminal(master)
