"""How the registry itself is doing: the figures of the `performance` event (§8).

Measures; judges nothing and logs nothing.
"""

from collections import deque
from dataclasses import dataclass

_MOST_SELECTIONS = 4096
_MOST_LAGS = 16384
_P50, _P99 = 0.50, 0.99


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

    def lagged(self, seconds: float) -> None:
        """Note how late the loop came to a timer."""
        self._worst_lag_seconds = max(self._worst_lag_seconds, seconds)
        self._lags.append(seconds)

    def selected(self, seconds: float) -> None:
        """Note how long one placement took."""
        self._selections.append(seconds)

    def read(self, *, now: float, beats: int) -> Performance:
        """Return the period's figures and begin anew; `beats` counts from the start of the registry."""
        span = max(now - self._since, 1e-9)
        lags, taken = sorted(self._lags), sorted(self._selections)
        figures = Performance(
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
        return figures


def _share(ordered: list[float], share: float, *, unit: float) -> float | None:
    """Return the value below which this share of them lies."""
    return round(ordered[int(len(ordered) * share)] * unit, 2) if ordered else None
