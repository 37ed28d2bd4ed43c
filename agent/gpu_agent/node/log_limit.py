"""A limit on log lines that others cause: a few of each event in a window, then a count.

Keyed by the event's name, of which the program has a fixed number: what a peer writes never becomes a key.
The next line of the event that passes carries the count of the suppressed ones.
"""

from dataclasses import dataclass

WINDOW_SECONDS = 60.0
MAX_IN_WINDOW = 5


@dataclass(slots=True)
class _Window:
    began_at: float
    about: object
    admitted: int = 0
    suppressed: int = 0


class LogLimit:
    """Counts the lines of each event in its current window."""

    def __init__(self) -> None:
        self._windows: dict[str, _Window] = {}

    def admit(self, event: str, *, now: float, about: object = None) -> dict[str, object] | None:
        """Return fields to add to a line that may be logged, None to suppress it. `now`: monotonic seconds.

        Another `about` begins a new window: pass it only where it changes slowly.
        """
        window = self._windows.get(event)
        if window is None or now - window.began_at >= WINDOW_SECONDS or window.about != about:
            before, window = window, _Window(now, about)
            self._windows[event] = window
            window.admitted = 1
            return {"suppressed": before.suppressed} if before and before.suppressed else {}
        if window.admitted >= MAX_IN_WINDOW:
            window.suppressed += 1
            return None
        window.admitted += 1
        return {}
