"""The registry's two clocks: monotonic seconds for decisions, and wall time for what it sends and logs.

Wall time is computed from a monotonic moment when it is asked for, so that a step of the
system's clock changes what is shown and never a decision.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Clock:
    """Both clocks of this process."""

    monotonic: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time

    def wall_at(self, moment: float) -> float:
        """Return the Unix time of a monotonic moment, to the millisecond."""
        return round(self.wall() - (self.monotonic() - moment), 3)
