"""Signals that are for a command which was started here: handed on to it, from before it was started.

It hands on none that the command has from its terminal already, and hears none that was told to be ignored.
"""

import contextlib
import os
import signal
import subprocess
import sys
from types import FrameType, TracebackType
from typing import Self

from gpu_agent.cli.hearing import heard

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2")
HANDED_ON: tuple[signal.Signals, ...] = tuple(
    getattr(signal, name) for name in _NAMES if hasattr(signal, name)
)
_BY_TERMINAL = ("SIGINT", "SIGQUIT")
_STDIN = 0


class HandingOn:
    """Hears the signals while its block lasts."""

    def __init__(self) -> None:
        self._heard_until_closed = contextlib.ExitStack()
        self._command: subprocess.Popen[bytes] | None = None
        self._early: list[int] = []

    def __enter__(self) -> Self:
        """Hear the signals from here on; those that come before there is a command wait for it."""
        self._heard_until_closed.enter_context(heard(HANDED_ON, self._hear))
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
