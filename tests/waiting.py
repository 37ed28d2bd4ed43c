"""Waiting for a condition, for as long as this machine needs.

On a busy machine programs start and answer later. So `patience` turns the seconds that suffice on an idle
machine into those that are allowed now: more where more processes want to run than there are processors.
"""

import asyncio
import os
import time
from collections.abc import Callable

LOOK_SECONDS = 0.005
_MAX_FACTOR = 12.0


def patience(seconds: float) -> float:
    """Return how long to wait now for what takes at most so long on an idle machine."""
    return seconds * _load_factor()


async def until(true: Callable[[], bool], *, within_seconds: float = 10.0) -> None:
    """Wait in a test's own loop until it is true, where no event comes that a test could await."""
    began = time.monotonic()
    while not true():
        if time.monotonic() - began > patience(within_seconds):
            raise AssertionError(f"not within {patience(within_seconds):.0f} s")
        await asyncio.sleep(LOOK_SECONDS)


def _load_factor() -> float:
    try:
        load = os.getloadavg()[0]
    except (AttributeError, OSError):  # Windows has none
        return 2.0
    return min(_MAX_FACTOR, max(1.0, 2.0 * load / (os.cpu_count() or 1)))
