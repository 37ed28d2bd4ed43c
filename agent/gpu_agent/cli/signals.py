"""Signals in commands that run no event loop: handled for a block, held back, or forwarded to a child.

A signal that the program was started to ignore (`nohup`) stays ignored; former handlers are restored.
"""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType, TracebackType
from typing import Self


@contextmanager
def handle_signals(
    numbers: Iterable[signal.Signals], handler: Callable[[int, FrameType | None], None]
) -> Iterator[None]:
    """Call `handler` for each of these signals; one that the program was told to ignore stays ignored."""
    before = {number: signal.getsignal(number) for number in numbers}
    taken = {number: former for number, former in before.items() if former is not signal.SIG_IGN}
    for number in taken:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, former in taken.items():
            signal.signal(number, former if callable(former) else signal.SIG_DFL)


ENDING: tuple[signal.Signals, ...] = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT") if hasattr(signal, name)
)
"""The signals that ask a command to leave; Windows lacks the last two."""


class Interruption:
    """Hears the signals while its block lasts."""

    def __init__(self) -> None:
        self._heard_until_closed = ExitStack()
        self._heard = self._held = self._over = False

    def __enter__(self) -> Self:
        """Hear the signals from here on."""
        self._heard_until_closed.enter_context(handle_signals(ENDING, self._hear))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Put back the handlers that were there before."""
        self._heard_until_closed.close()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep a signal back until the block is done."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
            if self._heard and not self._over:
                self._interrupt()

    def finish(self) -> None:
        """Hear no more: everything is being ended already."""
        self._over = True

    def _hear(self, _number: int, _frame: FrameType | None) -> None:
        self._heard = True
        if not (self._held or self._over):
            self._interrupt()

    def _interrupt(self) -> None:
        self._over = True
        raise KeyboardInterrupt


_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2")
FORWARDED: tuple[signal.Signals, ...] = tuple(
    getattr(signal, name) for name in _NAMES if hasattr(signal, name)
)
_BY_TERMINAL = ("SIGINT", "SIGQUIT")
_STDIN = 0


class SignalForwarder:
    """Hears the signals while its block lasts."""

    def __init__(self) -> None:
        self._heard_until_closed = contextlib.ExitStack()
        self._command: subprocess.Popen[bytes] | None = None
        self._early: list[int] = []

    def __enter__(self) -> Self:
        """Hear the signals from here on; those that come before there is a command wait for it."""
        self._heard_until_closed.enter_context(handle_signals(FORWARDED, self._hear))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Put back the handlers that were there before."""
        self._heard_until_closed.close()

    def to(self, command: "subprocess.Popen[bytes]") -> None:
        """Hand on to this one, which shares our terminal if there is one."""
        self._command = command
        while self._early:
            command.send_signal(self._early.pop(0))

    def _hear(self, number: int, _frame: FrameType | None) -> None:
        if self._command is None:
            self._early.append(number)
        elif not (signal.Signals(number).name in _BY_TERMINAL and _in_foreground()):
            self._command.send_signal(number)


def _in_foreground() -> bool:
    """Whether a terminal gives its signals to us, and so to the command beside us."""
    if sys.platform == "win32":
        return True
    with contextlib.suppress(OSError):
        return os.tcgetpgrp(_STDIN) == os.getpgrp()
    return False
