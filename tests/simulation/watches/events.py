"""Every event that was told is kept, under a number that grows over all processes of the registry."""

from collections.abc import Sequence

from gpu_agent.registry.actions import Action, Save
from gpu_agent.server.clerk import Doing, Publish
from gpu_agent.store.base import Batch, Loaded
from tests.simulation.broken import Invariant, hold
from tests.simulation.watching import Watch


class EventsWatch(Watch):
    """Watches numbers."""

    def __init__(self) -> None:
        self._kept: set[int] = set()
        self._newest_kept = 0
        self._newest_told = 0

    def kept(self, saves: Sequence[Save], batches: Sequence[Batch]) -> None:
        for event in (event for batch in batches for event in batch.events):
            assert event.id is not None
            self._kept.add(event.id)
            self._newest_kept = max(self._newest_kept, event.id)

    def carried(self, doing: Doing) -> None:
        if isinstance(doing, Publish) and doing.event.id is not None:
            number = doing.event.id
            kept = number in self._kept and number > self._newest_told
            hold(Invariant.EVENTS_KEPT, kept, f"{doing.event} was told after {self._newest_told}")
            self._newest_told = number

    def restored(self, actions: Sequence[Action], loaded: Loaded) -> None:
        newest = max((event.id or 0 for event in loaded.recent), default=0)
        hold(Invariant.EVENTS_KEPT, newest == self._newest_kept, f"{newest} is back of {self._newest_kept}")
        self._kept.clear()
