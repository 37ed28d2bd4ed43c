"""How late the event loop comes to its timers, asked some fifty times a second.

A stall is noted once for each question that went unanswered in it: a loop that stands for a second
made everybody wait who came in that second, not only the one whose turn it was. Judges nothing.
"""

import asyncio
from collections.abc import Callable

INTERVAL_SECONDS = 0.02

_MOST_QUESTIONS = 500
"""Of one stall: a machine that slept for a night must not be made up for question by question."""


class LagSampler:
    """Reports lateness in seconds from `start` to `stop`, on the running loop."""

    def __init__(self, noted: Callable[[float], None], *, monotonic: Callable[[], float]) -> None:
        self._noted = noted
        self._now = monotonic
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to ask."""
        self._due = self._now() + INTERVAL_SECONDS
        self._timer = asyncio.get_running_loop().call_later(INTERVAL_SECONDS, self._answered)

    def stop(self) -> None:
        """Ask no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _answered(self) -> None:
        late = max(0.0, self._now() - self._due)
        for lateness in unanswered(late):
            self._noted(lateness)
        self.start()


def unanswered(late: float) -> list[float]:
    """Return how late each question of a stall was answered, the one that met its beginning first."""
    questions = min(int(late / INTERVAL_SECONDS), _MOST_QUESTIONS) + 1
    return [late - INTERVAL_SECONDS * asked for asked in range(questions)]
