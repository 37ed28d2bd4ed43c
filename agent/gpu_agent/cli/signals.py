"""Signals in commands that run no event loop: handled for a block, held back, or forwarded to a child.

A signal that the program was started to ignore (`nohup`) stays ignored; former handlers are restored.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from types import FrameType, TracebackType
from typing import Self


def _known(*names: str) -> tuple[signal.Signals, ...]:
    return tuple(getattr(signal, name) for name in names if hasattr(signal, name))


ENDING = _known("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT")
"""The signals that ask a command to end; Windows lacks the last two."""
FORWARDED = _known("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2")
_BY_TERMINAL = ("SIGINT", "SIGQUIT")
_STDIN = 0


class Interruption:
    """Turns a signal that asks for the end into a `KeyboardInterrupt`, once, while its block lasts.

    It never interrupts between the start of a process and the note that it must be ended, and never while
    things are being ended.
    """

    def __init__(self) -> None:
        self._handlers = ExitStack()
        self._received = self._held = self._over = False

    def __enter__(self) -> Self:
        """Handle the signals from here on."""
        self._handlers.enter_context(handle_signals(ENDING, self._handle))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Restore the former handlers."""
        self._handlers.close()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold a signal back until the block is done."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
            if self._received and not self._over:
                self._interrupt()

    def finish(self) -> None:
        """Interrupt no more: everything is being ended already."""
        self._over = True

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        self._received = True
        if not (self._held or self._over):
            self._interrupt()

    def _interrupt(self) -> None:
        self._over = True
        raise KeyboardInterrupt


class SignalForwarder:
    """Forwards signals to a command while its block lasts, also those that come before it is started.

    A signal that the command gets from its terminal anyway is not sent twice.
    """

    def __init__(self) -> None:
        self._handlers = ExitStack()
        self._command: subprocess.Popen[bytes] | None = None
        self._early: list[int] = []

    def __enter__(self) -> Self:
        """Handle the signals from here on."""
        self._handlers.enter_context(handle_signals(FORWARDED, self._handle))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Restore the former handlers."""
        self._handlers.close()

    def forward_to(self, command: "subprocess.Popen[bytes]") -> None:
        """Forward to this command, which shares our terminal if there is one."""
        self._command = command
        while self._early:
            command.send_signal(self._early.pop(0))

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self._command is None:
            self._early.append(number)
        elif not (signal.Signals(number).name in _BY_TERMINAL and _in_foreground()):
            self._command.send_signal(number)


@contextmanager
def handle_signals(
    numbers: Iterable[signal.Signals], handler: Callable[[int, FrameType | None], None]
) -> Iterator[None]:
    """Call `handler` for each of these signals; one that the program was started to ignore stays ignored."""
    former = {number: signal.getsignal(number) for number in numbers}
    handled = {number: before for number, before in former.items() if before is not signal.SIG_IGN}
    for number in handled:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, before in handled.items():
            signal.signal(number, before if callable(before) else signal.SIG_DFL)


def _in_foreground() -> bool:
    """Say whether the terminal sends its signals to us, and so to the command too."""
    if sys.platform == "win32":
        return True
    with suppress(OSError):
        return os.tcgetpgrp(_STDIN) == os.getpgrp()
    return False
