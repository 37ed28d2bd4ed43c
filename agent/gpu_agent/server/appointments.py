"""When those who cannot be served now should come again: one after the other, as fast as they can be served.

Told all the same time, they would come together again. Measures how fast registrations end, and
gives each who asks the next free place after that. Turns nobody away itself.
"""

from math import ceil

SOONEST_SECONDS = 2.0
LATEST_SECONDS = 30.0
"""Nobody is kept away for longer, whoever else asked before."""

_MEASURED_SECONDS = 2.0
_SLOWEST_PER_SECOND = 50.0


class Appointments:
    """Times are monotonic seconds."""

    def __init__(self) -> None:
        self._since = 0.0
        self._served = 0
        self._per_second = _SLOWEST_PER_SECOND
        self._taken_until = 0.0

    def served(self, now: float) -> None:
        """Somebody has registered."""
        elapsed = now - self._since
        if elapsed >= _MEASURED_SECONDS:
            self._per_second = max(_SLOWEST_PER_SECOND, self._served / elapsed)
            self._since, self._served = now, 0
        self._served += 1

    def next_in(self, now: float) -> int:
        """Give away the next free place; returns in how many whole seconds it is."""
        earliest = max(self._taken_until, now + SOONEST_SECONDS)
        self._taken_until = min(earliest + 1 / self._per_second, now + LATEST_SECONDS)
        return ceil(self._taken_until - now)
