"""How the registry itself is doing: the figures of the `performance` event (§8), and all since its start.

Measures; judges nothing and logs nothing.
"""

from collections import deque
from dataclasses import dataclass

from gpu_agent.server.histogram import Histogram

_MOST_SELECTIONS = 4096
_MOST_LAGS = 16384
_P50, _P99 = 0.50, 0.99
_LAG_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
_SELECTION_BOUNDS = (25e-6, 50e-6, 100e-6, 250e-6, 500e-6, 0.001, 0.0025, 0.005, 0.01, 0.1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Performance:
    """One period's figures; None where nothing was measured."""

    beats_per_second: float
    loop_lag_ms: float
    """The longest that the loop was late in the period."""
    loop_lag_p50_ms: float | None
    loop_lag_p99_ms: float | None
    select_p99_us: float | None


class Meter:
    """Collects over a period, then starts the next."""

    def __init__(self, *, now: float, beats: int = 0) -> None:
        self._since, self._beats_then = now, beats
        self._worst_lag_seconds = 0.0
        self._lags: deque[float] = deque(maxlen=_MOST_LAGS)
        self._selections: deque[float] = deque(maxlen=_MOST_SELECTIONS)
        self.loop_lag = Histogram(_LAG_BOUNDS)
        """Seconds, since the start."""
        self.selections = Histogram(_SELECTION_BOUNDS)
        """Seconds, since the start."""
        self.last: Performance | None = None
        """The last full period; None before its end."""

    def lagged(self, seconds: float) -> None:
        """Note how late the loop came to a timer."""
        self._worst_lag_seconds = max(self._worst_lag_seconds, seconds)
        self._lags.append(seconds)
        self.loop_lag.add(seconds)

    def selected(self, seconds: float) -> None:
        """Note how long the choice of one place took; saving it and telling of it are no part of it."""
        self._selections.append(seconds)
        self.selections.add(seconds)

    def read(self, *, now: float, beats: int) -> Performance:
        """Return the period's figures and begin anew; `beats` counts from the start of the registry."""
        span = max(now - self._since, 1e-9)
        lags, taken = sorted(self._lags), sorted(self._selections)
        self.last = Performance(
            beats_per_second=round((beats - self._beats_then) / span, 1),
            loop_lag_ms=round(self._worst_lag_seconds * 1e3, 2),
            loop_lag_p50_ms=_share(lags, _P50, unit=1e3),
            loop_lag_p99_ms=_share(lags, _P99, unit=1e3),
            select_p99_us=_share(taken, _P99, unit=1e6),
        )
        self._since, self._beats_then = now, beats
        self._worst_lag_seconds = 0.0
        self._lags.clear()
        self._selections.clear()
        return self.last


def _share(ordered: list[float], share: float, *, unit: float) -> float | None:
    """Return the value below which this share of them lies."""
    return round(ordered[int(len(ordered) * share)] * unit, 2) if ordered else None
