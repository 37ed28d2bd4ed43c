"""`Retry-After` of an HTTP answer: how long a peer asks to be left alone.

Whatever a peer or a proxy writes, it is never the cause of an exception. Bounds nothing: how much of
it is heeded is the session's to decide.
"""

from collections.abc import Iterable
from email.utils import parsedate_to_datetime

_MOST_DIGITS = 9
_NO_DATE = (ValueError, OverflowError, OSError, LookupError, TypeError)
"""What the parser and the calendar of Python raise for absurd dates."""


def retry_after_seconds(written: Iterable[str], *, now: float) -> float | None:
    """Read the first header that makes sense, in seconds from `now` (Unix time); None without one."""
    readings = (_seconds(one.strip(), now) for one in written)
    return next((seconds for seconds in readings if seconds is not None), None)


def _seconds(written: str, now: float) -> float | None:
    if written.isascii() and written.isdigit():
        return float(written[:_MOST_DIGITS])
    try:
        return max(0.0, parsedate_to_datetime(written).timestamp() - now)
    except _NO_DATE:
        return None
