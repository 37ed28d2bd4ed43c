"""A terminal in front of the command under test: what is typed there, and what it shows."""

import contextlib
import fcntl
import os
import pty
import signal
import struct
import subprocess
import termios
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Self

import pytest

from tests.programs import COMMAND, eventually
from tests.waiting import patience

_OURS = ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR")


class Terminal:
    """The side of a person."""

    def __init__(self, master: int) -> None:
        self._master = master

    def type(self, words: str) -> None:
        """Type a line."""
        os.write(self._master, f"{words}\n".encode())

    def said(self) -> str:
        """All that has been shown, with the codes that style it."""
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


class OnTerminal:
    """A `gpu-agent` process that has a terminal of its own, 80 columns wide and 24 lines high."""

    def __init__(self, *words: str) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        environment = {name: value for name, value in os.environ.items() if name not in _OURS}
        self._process = subprocess.Popen(
            [*COMMAND, *words],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            env={**environment, "TERM": "xterm-256color"},
        )
        os.close(slave)
        self._shown = b""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # a terminal ends so when its last writer has gone
            while data := os.read(self._master, 65536):
                self._shown += data

    @property
    def shown(self) -> str:
        """All that came so far."""
        return self._shown.decode(errors="replace")

    def await_words(self, words: str, *, times: int = 1) -> None:
        """Wait until it has shown this."""
        try:
            eventually(lambda: self.shown.count(words) >= times, within_seconds=20, what=repr(words))
        except AssertionError as late:
            raise AssertionError(f"{late}; shown: {self.shown!r}") from None

    def send(self, number: signal.Signals) -> None:
        """Send a signal."""
        self._process.send_signal(number)

    def wait(self) -> int:
        """Wait for its end."""
        code = self._process.wait(patience(15))
        self._reader.join(patience(5))
        return code

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait(patience(5))
        self._reader.join(patience(5))
        os.close(self._master)
