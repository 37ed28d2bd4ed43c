"""Delays between attempts: doubling up to a ceiling, with full jitter.

Draws no chance of its own and knows no clock.
"""

from collections.abc import Callable

_CEILING_SPREAD = 0.5
"""A delay at the ceiling lies within a quarter of it, either way."""


class Backoff:
    """The delay before the next attempt; it doubles until `reset`."""

    def __init__(self, *, first_seconds: float, ceiling_seconds: float, draw: Callable[[], float]) -> None:
        self._first = first_seconds
        self._ceiling = ceiling_seconds
        self._draw = draw
        self._bound = min(first_seconds, ceiling_seconds)

    def next_delay(self, *, at_least: float = 0.0) -> float:
        """Draw the next delay; what a peer asked for comes first, the jitter on top of it."""
        bound = self._bound
        self._bound = min(bound * 2, self._ceiling)
        return at_least + self._draw() * bound

    def delay_at_ceiling(self, *, at_least: float = 0.0) -> float:
        """Draw a delay around the ceiling: the cause needs a person, not haste."""
        spread = 1 - _CEILING_SPREAD / 2 + _CEILING_SPREAD * self._draw()
        return max(at_least, self._ceiling * spread)

    def reset(self) -> None:
        """Begin anew: the session has proven stable."""
        self._bound = min(self._first, self._ceiling)
