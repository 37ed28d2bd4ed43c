"""Turns at being answered: for each user one answer after the other, with a rest of the loop behind each.

However many connections one user has, his questions together cost the agent a bounded share of its time,
and other users' wait for none of his. It refuses to know what is asked.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

REST = 1.0
"""So many times as long as an answer took, its user gets no other: half of the time is his at most."""


class Turns:
    """Those of all users."""

    def __init__(self) -> None:
        self._of: dict[int, _Turn] = {}

    @asynccontextmanager
    async def one(self, uid: int) -> AsyncIterator[None]:
        """Wait for a user's turn; it lasts as long as the block, which waits for nothing."""
        turn = self._of.setdefault(uid, _Turn())
        loop = asyncio.get_running_loop()
        async with turn.lock:
            await asyncio.sleep(max(0.0, turn.rests_until - loop.time()))
            began = loop.time()
            try:
                yield
            finally:
                ended = loop.time()
                turn.rests_until = ended + REST * (ended - began)


class _Turn:
    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.rests_until = 0.0
