"""Hearing signals for as long as a block lasts, in a command that runs no event loop.

It decides nothing about what a signal means, and restores what was there before. Apart from
`runtime.signals`, which delivers to a loop: a command that has none should not load one.
"""

import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def heard(
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
