"""Long work on the event loop, done in slices so that nobody else waits for it."""

import asyncio
import itertools
import time
from collections.abc import Iterator
from typing import TypeVar

SLICE_SECONDS = 0.005
_STEPS_BETWEEN_LOOKS = 16

T = TypeVar("T")


async def collected(steps: Iterator[T]) -> list[T]:
    """Run an iterator to its end and return what it gave; after each slice everybody else has a turn."""
    found: list[T] = []
    slice_ends = time.monotonic() + SLICE_SECONDS
    while some := list(itertools.islice(steps, _STEPS_BETWEEN_LOOKS)):
        found += some
        if time.monotonic() > slice_ends:
            await asyncio.sleep(0)
            slice_ends = time.monotonic() + SLICE_SECONDS
    return found
