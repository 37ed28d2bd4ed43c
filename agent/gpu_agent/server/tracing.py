"""Which trace of a caller's the work at hand belongs to, so that the events it causes can name it (§8).

Follows the task that asks, and ends with it. Reads no header and writes no log.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_TRACE_ID = re.compile(r"[!-~]{1,128}")
_current: ContextVar[str | None] = ContextVar("trace_id", default=None)


def is_trace_id(text: str) -> bool:
    """Say whether a text can name a trace: 1 to 128 printable characters of ASCII, no spaces."""
    return _TRACE_ID.fullmatch(text) is not None


def current_trace_id() -> str | None:
    """Return the trace that this task asks within; None outside of any."""
    return _current.get()


@contextmanager
def caused_by(trace_id: str | None) -> Iterator[None]:
    """Let what is asked for in this block be noted under a trace; None for none. Raises `ValueError`."""
    if trace_id is not None and not is_trace_id(trace_id):
        raise ValueError(f"{trace_id!r} names no trace: 1 to 128 printable characters of ASCII, no spaces")
    before = _current.set(trace_id)
    try:
        yield
    finally:
        _current.reset(before)
