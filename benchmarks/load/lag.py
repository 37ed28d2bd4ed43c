"""How late the event loop is while something runs."""

import asyncio
import time
from typing import Self

from benchmarks.load.quantile import quantile

TICK_SECONDS = 0.005


class Lag:
    """How late a timer came while something ran."""

    def __init__(self) -> None:
        self.late: list[float] = []

    async def __aenter__(self) -> Self:
        """Begin to tick."""
        self._ticking = asyncio.ensure_future(self._tick())
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop."""
        self._ticking.cancel()

    async def _tick(self) -> None:
        while True:
            due = time.perf_counter() + TICK_SECONDS
            await asyncio.sleep(TICK_SECONDS)
            self.late.append(max(0.0, time.perf_counter() - due))

    def __str__(self) -> str:
        """The 99th percentile and the worst, in words."""
        p99, worst = quantile(self.late, 0.99) * 1e3, max(self.late) * 1e3
        return f"loop late by {p99:.1f} ms at p99, {worst:.1f} ms at worst"
