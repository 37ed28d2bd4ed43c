"""How the registry itself is doing: the figures of the `performance` event (§8).

Measures; judges nothing and logs nothing.
"""

from collections import deque
from dataclasses import dataclass

_MOST_SELECTIONS = 4096
_P99 = 0.99


@dataclass(frozen=True, slots=True, kw_only=True)
class Performance:
    """One period's figures; None where nothing was measured."""

    beats_per_second: float
    loop_lag_ms: float
    """The longest that the loop was late in the period."""
    select_p99_us: float | None


class Meter:
    """Collects over a period, then starts the next."""

    def __init__(self, *, now: float, beats: int = 0) -> None:
        self._since, self._beats_then = now, beats
        self._worst_lag_seconds = 0.0
        self._selections: deque[float] = deque(maxlen=_MOST_SELECTIONS)

    def lagged(self, seconds: float) -> None:
        """Note how late the loop came to a timer."""
        self._worst_lag_seconds = max(self._worst_lag_seconds, seconds)

    def selected(self, seconds: float) -> None:
        """Note how long one placement took."""
        self._selections.append(seconds)

    def read(self, *, now: float, beats: int) -> Performance:
        """Return the period's figures and begin anew; `beats` counts from the start of the registry."""
        span = max(now - self._since, 1e-9)
        taken = sorted(self._selections)
        figures = Performance(
            beats_per_second=round((beats - self._beats_then) / span, 1),
            loop_lag_ms=round(self._worst_lag_seconds * 1e3, 2),
            select_p99_us=round(taken[int(len(taken) * _P99)] * 1e6, 1) if taken else None,
        )
        self._since, self._beats_then = now, beats
        self._worst_lag_seconds = 0.0
        self._selections.clear()
        return figures
