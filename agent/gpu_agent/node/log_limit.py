"""A limit on log lines that others cause: a few of each event in a window, then a count.

Keyed by the event's name, of which the program has a fixed number: what a peer writes never becomes a key.
The next line of the event that passes carries the count of the suppressed ones.
"""

from dataclasses import dataclass

WINDOW_SECONDS = 60.0
MOST_IN_A_WINDOW = 5


@dataclass(slots=True)
class _Window:
    began_at: float
    about: object
    told: int = 0
    kept_back: int = 0


class LogLimit:
    """What was told lately, by event."""

    def __init__(self) -> None:
        self._windows: dict[str, _Window] = {}

    def admit(self, event: str, *, now: float, about: object = None) -> dict[str, object] | None:
        """Let a line through, with fields to add to it, or None to keep it back. `now`: monotonic seconds.

        What is `about` something else than the one before is no repeat: give it only where what changes it
        is slow.
        """
        window = self._windows.get(event)
        if window is None or now - window.began_at >= WINDOW_SECONDS or window.about != about:
            before, window = window, _Window(now, about)
            self._windows[event] = window
            window.told = 1
            return {"kept_back": before.kept_back} if before and before.kept_back else {}
        if window.told >= MOST_IN_A_WINDOW:
            window.kept_back += 1
            return None
        window.told += 1
        return {}
