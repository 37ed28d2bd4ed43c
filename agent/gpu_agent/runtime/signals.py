"""Signals of a program: as calls on its event loop, and passed on by PID 1 of a container.

PID 1 must pass signals to the program and reap orphans; so there the program runs as a child of a process
that does nothing else. The meaning of a signal is decided elsewhere.
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
_FROM_THE_KERNEL = 0x80
"""`si_code` of what no process sent: a terminal's Ctrl-C, which goes to its whole foreground by itself."""
_KILLED = 128
"""Added, as shells do, to the number of the signal that killed the program."""


def terminal_attached() -> bool:
    """Whether a terminal feeds the program: then a hang-up means that it is gone, and the program stops.

    Without a terminal a hang-up asks it to read its settings again.
    """
    return os.isatty(_STDIN)


@contextmanager
def signals_to_loop(
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


def run_as_first_process(work: Callable[[], int]) -> int:
    """Do the work and return its exit code; as PID 1 in a child, with the code in both processes."""
    if os.getpid() != 1:
        return work()
    watched = {*STOPPING, *RELOADING, signal.SIGCHLD}
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # our parent may have had it ignored: none would come
    signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    child = os.fork()
    if child == 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, watched)  # they may have been blocked before
        return work()
    return _supervise(child, watched)


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


def _supervise(child: int, watched: set[signal.Signals]) -> int:
    code = _reap_children(child)  # some may have ended before
    while code is None:
        arrived = signal.sigwaitinfo(watched)
        if arrived.si_signo == signal.SIGCHLD:
            code = _reap_children(child)
        elif arrived.si_code != _FROM_THE_KERNEL:
            os.kill(child, arrived.si_signo)
    return code


def _reap_children(child: int) -> int | None:
    """Reap every child that has ended; returns the program's exit code when it is among them."""
    while True:
        ended, status = os.waitpid(-1, os.WNOHANG)
        if ended == child:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else _KILLED - code
        if ended == 0:
            return None
