"""Waiting, in a test's own loop, for what comes by no event that a test could await."""

import asyncio
from collections.abc import Callable

LOOK_SECONDS = 0.005


async def until(true: Callable[[], bool], *, within_seconds: float = 10.0) -> None:
    """Look until it is true."""
    for _ in range(round(within_seconds / LOOK_SECONDS)):
        if true():
            return
        await asyncio.sleep(LOOK_SECONDS)
    raise AssertionError(f"not within {within_seconds} s")
