"""How often something took how long: counts per bound, from the start of the registry. Judges nothing."""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from math import inf


class Histogram:
    """Counts values into bounds; cheap enough for a path that is often taken."""

    def __init__(self, bounds: Sequence[float]) -> None:
        """Take the upper bounds, rising; what lies above the last is counted too."""
        self._bounds = (*bounds, inf)
        self._counts = [0] * len(self._bounds)
        self.sum = 0.0

    def add(self, value: float) -> None:
        """Count a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self.sum += value

    def cumulative(self) -> Iterator[tuple[float, int]]:
        """Return each bound, and how many values were at most that; infinity is the last."""
        total = 0
        for bound, count in zip(self._bounds, self._counts, strict=True):
            total += count
            yield bound, total
