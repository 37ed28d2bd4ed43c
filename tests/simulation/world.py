"""The world's clock and dice: things to come in one queue, and one source of chance.

No time passes by itself and nothing happens at once: the clock jumps from one thing to the next.
What is due at the same instant comes in the order in which it was planned.
"""

import heapq
from collections import deque
from collections.abc import Callable
from itertools import count
from random import Random
from zlib import crc32

from gpu_agent.server.tokens import GeneratedToken, digest_of

# What happened, line by line: the last of it to be read, all of it in one number to be compared.


REMEMBERED_LINES = 400


class Trace:
    """Lines with their virtual time. Two runs of a seed have the same mark, or something is not seeded."""

    def __init__(self, *, whole: bool = False) -> None:
        self.lines: deque[str] = deque(maxlen=None if whole else REMEMBERED_LINES)
        self.count = 0
        self._mark = 0

    def add(self, line: str) -> None:
        """Write a line."""
        self._mark = crc32(line.encode(), self._mark)
        self.count += 1
        self.lines.append(line)

    @property
    def mark(self) -> str:
        """All lines in one number."""
        return f"{self.count}-{self._mark:08x}"

    def tail(self, count: int) -> str:
        """Write down the last lines."""
        return "\n".join(list(self.lines)[-count:])


EPOCH = 1_795_500_000.0
"""The wall time at which every world begins."""


class World:
    """One world, from its seed."""

    def __init__(self, seed: int, *, trace: Trace) -> None:
        self.now = 0.0
        self.dice = Random(seed)
        self.trace = trace
        self.wall_offset = 0.0
        """How wrong the registry's wall clock is."""
        self._queue: list[tuple[float, float, int, int, Callable[[], None]]] = []
        """What is to come: when, then since when it is due, then in the order in which it was planned."""
        self._running = (0.0, 0)
        self._ties = count()

    def at(self, when: float, do: Callable[[], None]) -> None:
        """Plan something for an instant; what is past is due now."""
        due, tie = max(when, self.now), next(self._ties)
        heapq.heappush(self._queue, (due, due, tie, tie, do))

    def put_off(self, when: float, do: Callable[[], None]) -> None:
        """Let what happens now happen later, still ahead of all that came after it."""
        since, tie = self._running
        heapq.heappush(self._queue, (max(when, self.now), since, tie, next(self._ties), do))

    def after(self, seconds: float, do: Callable[[], None]) -> None:
        """Plan something."""
        self.at(self.now + seconds, do)

    def run_until(self, end: float) -> None:
        """Let everything happen that is due until then."""
        queue = self._queue
        while queue and queue[0][0] <= end:
            self.now, since, tie, _, do = heapq.heappop(queue)
            self._running = (since, tie)
            do()
        self.now = end

    def wall(self) -> float:
        """Read the registry's wall clock."""
        return EPOCH + self.now + self.wall_offset

    def say(self, who: str, what: str) -> None:
        """Write a line of the trace."""
        self.trace.add(f"{self.now:10.3f} {who:<12} {what}")

    def chance(self, share: float) -> bool:
        """Throw a coin that falls so often."""
        return self.dice.random() < share

    def mint(self, prefix: str) -> GeneratedToken:
        """Draw a token, as secret as a seed."""
        token_id = f"{self.dice.getrandbits(32):08x}"
        text = f"{prefix}_{token_id}_{self.dice.getrandbits(128):032x}"
        return GeneratedToken(token_id, text, digest_of(text))

    def soon(self, mean_seconds: float) -> float:
        """Draw a wait of this mean."""
        return self.dice.expovariate(1 / mean_seconds)
