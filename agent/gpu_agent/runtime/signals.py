"""The signals that end or change a program, delivered as calls on its event loop.

Decides nothing about what a signal means, and restores what was there before.
"""

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

STOPPING: tuple[signal.Signals, ...] = (signal.SIGTERM, signal.SIGINT)
"""Signals that ask a program to leave."""

RELOADING: tuple[signal.Signals, ...] = tuple(
    getattr(signal, name) for name in ("SIGHUP",) if hasattr(signal, name)
)
"""Signals that ask a program to read its settings again; none on Windows."""

_STDIN = 0


def hang_up_ends() -> bool:
    """Tell whether a hang-up means that the terminal from which the program was started is gone.

    Then it is a signal to leave; a program that no terminal feeds is asked to read its settings again.
    """
    return os.isatty(_STDIN)


@contextmanager
def delivered(
    numbers: tuple[signal.Signals, ...], handler: Callable[[signal.Signals], None]
) -> Iterator[None]:
    """Call `handler` on the running loop for each of these signals, while the block lasts."""
    loop = asyncio.get_running_loop()
    undo = [_listen(loop, number, handler) for number in numbers]
    try:
        yield
    finally:
        for restore in undo:
            restore()


def _listen(
    loop: asyncio.AbstractEventLoop, number: signal.Signals, handler: Callable[[signal.Signals], None]
) -> Callable[[], object]:
    before = signal.getsignal(number)
    try:
        loop.add_signal_handler(number, handler, number)
    except NotImplementedError:  # Windows: its loop has no such method
        signal.signal(number, lambda *_: loop.call_soon_threadsafe(handler, number))

    def restore() -> None:
        with suppress(NotImplementedError):
            loop.remove_signal_handler(number)
        if before is not None:
            signal.signal(number, before)

    return restore
