"""The probe's turns: when the last one began, and whether one has been told that looked where it was told to.

It refuses to look anywhere itself.
"""

import asyncio
import contextlib
import time

from gpu_agent.probe.snapshot import Sources


class Turns:
    """Counts for one probe; `looked_at` comes from the thread that looks, all else from its loop."""

    def __init__(self) -> None:
        self.began_at = time.monotonic()
        """When the last one began, in monotonic seconds."""
        self._looked_at: Sources | None = None
        self._told = asyncio.Event()

    def begin(self) -> None:
        """Another one begins."""
        self.began_at = time.monotonic()

    def looked_at(self, sources: Sources) -> None:
        """The last look was there."""
        self._looked_at = sources

    def told(self, sources: Sources) -> None:
        """What was found is told; it is to be looked there."""
        if self._looked_at is sources:
            self._told.set()

    async def renewed(self, *, within_seconds: float) -> None:
        """Wait, for so long at most, until what is found at other places from now on is told."""
        self._told = asyncio.Event()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_seconds):
                await self._told.wait()
