"""What happened, for whoever asks later or listens now: bounded, so that nobody's interest costs memory.

Numbers the events, keeps a short history of each known node and the last events of all, and hands
every event on to those who subscribed. A listener that does not keep up loses the oldest events and
is told how many. Writes no log and no file.
"""

import asyncio
import itertools
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import contextmanager

from gpu_agent.registry.actions import Change, Kept
from gpu_agent.store.base import EVENTS_PER_NODE, RECENT_EVENTS, Loaded, RegistryEvent

__all__ = ["EVENTS_PER_LISTENER", "MISSED", "Chronicle", "Listener", "RegistryEvent", "follow"]

EVENTS_PER_LISTENER = 1000
MISSED = "events_missed"


class Listener:
    """One subscriber's queue of events; iterating waits for the next one."""

    def __init__(self, before: Iterable[RegistryEvent] = (), *, reached: int | None = None) -> None:
        self.reached = reached
        """The last event before the subscription; None when there was none."""
        self._before = deque(before)
        """What happened before the subscription; none of it is lost."""
        self._waiting: deque[RegistryEvent] = deque()
        self._missed = 0
        self._arrived = asyncio.Event()

    def offer(self, event: RegistryEvent) -> None:
        """Queue an event; the oldest one goes when the queue is full."""
        if len(self._waiting) >= EVENTS_PER_LISTENER:
            self._waiting.popleft()
            self._missed += 1
        self._waiting.append(event)
        self._arrived.set()

    @property
    def has_more(self) -> bool:
        """True when `next` need not wait."""
        return bool(self._before or self._waiting)

    async def next(self) -> RegistryEvent:
        """Wait for the next event; after a loss, the first one says how many were missed."""
        if self._before:
            return self._before.popleft()
        while not self._waiting:
            self._arrived.clear()
            await self._arrived.wait()
        if self._missed:
            missed, self._missed = self._missed, 0
            return RegistryEvent(self._waiting[0].at, MISSED, fields={"count": missed})
        return self._waiting.popleft()


class Chronicle:
    """The recent past of all nodes, and those who listen.

    Remembers what a `Store` would, by the same rules: a history begins when its node's document is
    first kept, and goes with it.
    """

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._histories: dict[str, deque[RegistryEvent]] = {}
        self._recent: deque[RegistryEvent] = deque()
        self._listeners: set[Listener] = set()

    def restore(self, loaded: Loaded) -> None:
        """Go on from what a store kept."""
        self._recent.extend(loaded.recent)
        self.keep(loaded.changes)
        for node_id, events in loaded.histories.items():
            self._histories[node_id] = deque(events, EVENTS_PER_NODE)
        self._numbers = itertools.count((self._recent[-1].id or 0) + 1 if self._recent else 1)

    def next_id(self) -> int:
        """Draw the number of the event that comes next."""
        return next(self._numbers)

    def keep(self, changes: Iterable[Change]) -> None:
        """Begin the histories of the nodes that are kept from now on, and drop those of which are not."""
        for change in changes:
            if change.kind is Kept.NODE:
                if change.document is None:
                    self._histories.pop(change.key, None)
                elif change.key not in self._histories:
                    self._histories[change.key] = deque(maxlen=EVENTS_PER_NODE)

    def add(self, event: RegistryEvent) -> None:
        """Write down an event that is kept, and hand it to all listeners, kept or not."""
        if event.id is not None:
            self._recent.append(event)
            while (self._recent[0].id or 0) <= event.id - RECENT_EVENTS:
                self._recent.popleft()
            history = self._histories.get(event.node_id or "")
            if history is not None:
                history.append(event)
        for listener in self._listeners:
            listener.offer(event)

    def of(self, node_id: str) -> tuple[RegistryEvent, ...]:
        """Return a node's recent events, oldest first."""
        return tuple(self._histories.get(node_id, ()))

    @property
    def listeners(self) -> int:
        """How many follow."""
        return len(self._listeners)

    @contextmanager
    def listening(self, *, after: int | None = None) -> Iterator[Listener]:
        """Subscribe for the length of a block, from now on or from the event `after` on."""
        reached = self._recent[-1].id if self._recent else None
        listener = Listener(() if after is None else self._since(after), reached=reached)
        self._listeners.add(listener)
        try:
            yield listener
        finally:
            self._listeners.discard(listener)

    def _since(self, after: int) -> Sequence[RegistryEvent]:
        """What came after an event; where that is not known in full, the first thing says so."""
        recent = self._recent
        oldest, newest = (recent[0].id or 0, recent[-1].id or 0) if recent else (1, 0)
        later = [event for event in recent if (event.id or 0) > after]
        if oldest - 1 <= after <= newest:
            return later
        at = later[0].at if later else 0.0
        return [RegistryEvent(at, MISSED, fields={"count": None}), *later]


async def follow(chronicle: Chronicle, *, after: int | None = None) -> AsyncIterator[RegistryEvent]:
    """Yield every event from now on, or after the one of that id, until the iterator is closed."""
    with chronicle.listening(after=after) as listener:
        while True:
            yield await listener.next()
