"""The true fleet, watched."""

from collections.abc import Sequence

from gpu_agent.registry.actions import Action
from gpu_agent.registry.events import Event
from gpu_agent.registry.fleet import Fleet
from tests.simulation.watching import Watch


class WatchedFleet:
    """The fleet as the loop drives it, each step seen by those who watch."""

    def __init__(self, fleet: Fleet, watch: Watch) -> None:
        self._fleet, self._watch = fleet, watch

    @property
    def deadline(self) -> float | None:
        return self._fleet.deadline

    def handle(self, event: Event, now: float) -> Sequence[Action]:
        self._watch.before(event)
        actions = self._fleet.handle(event, now)
        self._watch.decided(event, actions)
        return actions

    def wake(self, now: float) -> Sequence[Action]:
        self._watch.before(None)
        actions = self._fleet.wake(now)
        self._watch.decided(None, actions)
        return actions
