"""The way through the shelves: one thread goes it, and is left behind with a shelf that hangs.

Whoever waits for it has patience for as long as it gets on; then another thread goes the rest of the
way. The one that was left behind ends when its disk answers, and looks at nothing else.

It refuses to share out time: that is whoever's `visit` it makes.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable

from gpu_agent.probe.models.shelf import Shelf


class Walk:
    """One thread on its way."""

    def __init__(self, shelves: Iterable[Shelf], visit: Callable[[Shelf, int], bool]) -> None:
        """`visit` hears how many come after, and says whether it wants to come again to what it visits."""
        self.ended = threading.Event()
        self._visit = visit
        self._waiting = deque(shelves)
        self._again: deque[Shelf] = deque()
        self.at: Shelf | None = None
        """Where it is, and once it was left where it stays."""
        self._turn = threading.Lock()
        self._left = False
        self._went_through = False
        threading.Thread(target=self._go, name="models", daemon=True).start()

    def got_on(self, within_seconds: float) -> bool:
        """Wait for its end, for as long as it gets on within that time; False when it did not."""
        while not self.ended.wait(self._patience(within_seconds)):
            if self._patience(within_seconds) <= 0:
                return False
        if not self._went_through:
            raise RuntimeError("the way through the places of models broke off")  # why is told on stderr
        return True

    def leave(self) -> tuple[Shelf, ...]:
        """Leave it behind where it is; the rest of its way."""
        with self._turn:
            self._left = True
            return (*self._waiting, *self._again)

    def _patience(self, within_seconds: float) -> float:
        at = self.at
        return within_seconds if at is None else at.heard_at + within_seconds - time.monotonic()

    def _go(self) -> None:
        try:
            while (shelf := self._next()) is not None:
                if self._visit(shelf, len(self._waiting)):
                    self._again.append(shelf)
            self._went_through = True
        finally:
            self.ended.set()

    def _next(self) -> Shelf | None:
        with self._turn:
            if self._left:
                return None
            if not self._waiting:
                self._waiting, self._again = self._again, self._waiting
            if not self._waiting:
                return None
            shelf = self._waiting.popleft()
            shelf.heard_at = time.monotonic()
            self.at = shelf
            return shelf
