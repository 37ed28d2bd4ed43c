"""The signals that end a command which has started processes: heard once, and at a good moment.

A signal ends the command as a `KeyboardInterrupt`, but never between the start of something and the
note that it must be ended, and never while things are being ended. It refuses to hear what the
program was told to ignore (`nohup`), and puts back what was there before.
"""

import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType, TracebackType
from typing import Self

from gpu_agent.cli.hearing import heard

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
        self._heard_until_closed.enter_context(heard(ENDING, self._hear))
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
