"""Those who watch: told of each step of each machine, they hold it to the invariants.

`Watch` does nothing at all, so that each watcher overrides what it needs; `Watchers` calls those that do.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from gpu_agent.registry.actions import Action, Note, Save
from gpu_agent.registry.events import Event
from gpu_agent.server.clerk import Doing
from gpu_agent.session.machine import SessionMachine
from gpu_agent.store.base import Batch, Loaded


class Mover(Protocol):
    """What there is to see of an agent."""

    @property
    def name(self) -> str: ...
    @property
    def machine(self) -> SessionMachine | None: ...
    @property
    def is_dialing(self) -> bool: ...
    @property
    def family(self) -> str: ...
    @property
    def wish(self) -> int | None: ...


class Watch:
    """Sees what happens. The registry's shell and the agents' call these."""

    def before(self, event: Event | None) -> None:
        """The registry is about to take an event in, or to be woken (None)."""

    def decided(self, event: Event | None, actions: Sequence[Action]) -> None:
        """It has, and asks for these actions; none of them is carried out yet."""

    def carried(self, doing: Doing) -> None:
        """Something was told, closed or logged."""

    def kept(self, saves: Sequence[Save], batches: Sequence[Batch]) -> None:
        """Batches have reached the disk, and with them these saves."""

    def crashed(self) -> None:
        """The registry's process has ended."""

    def restored(self, actions: Sequence[Action], loaded: Loaded) -> None:
        """A new process has read what was kept, and asks for these actions."""

    def agent_moved(self, agent: Mover) -> None:
        """An agent has carried out all that its session asked for."""

    def glance(self) -> None:
        """Some seconds have passed, and the registry runs."""


class Watchers(Watch):
    """Calls each watcher for what it watches, in order."""

    def __init__(self, watchers: Iterable[Watch]) -> None:
        everyone = tuple(watchers)
        self._before: list[Callable[[Event | None], None]] = [
            one.before for one in everyone if type(one).before is not Watch.before
        ]
        self._decided: list[Callable[[Event | None, Sequence[Action]], None]] = [
            one.decided for one in everyone if type(one).decided is not Watch.decided
        ]
        self._carried: list[Callable[[Doing], None]] = [
            one.carried for one in everyone if type(one).carried is not Watch.carried
        ]
        self._everyone = everyone
        self._noted: dict[int, Note] = {}

    def before(self, event: Event | None) -> None:
        for watch in self._before:
            watch(event)

    def decided(self, event: Event | None, actions: Sequence[Action]) -> None:
        news = self._news(actions) if actions else actions
        for watch in self._decided:
            watch(event, news)

    def carried(self, doing: Doing) -> None:
        for watch in self._carried:
            watch(doing)

    def kept(self, saves: Sequence[Save], batches: Sequence[Batch]) -> None:
        for one in self._everyone:
            one.kept(saves, batches)

    def crashed(self) -> None:
        self._noted.clear()
        for one in self._everyone:
            one.crashed()

    def restored(self, actions: Sequence[Action], loaded: Loaded) -> None:
        for one in self._everyone:
            one.restored(actions, loaded)

    def agent_moved(self, agent: Mover) -> None:
        for one in self._everyone:
            one.agent_moved(agent)

    def glance(self) -> None:
        for one in self._everyone:
            one.glance()

    def _news(self, actions: Sequence[Action]) -> Sequence[Action]:
        """Leave out notes that were decided before: what was not saved is noted again with its next save."""
        news = [one for one in actions if id(one) not in self._noted]
        if isinstance(actions[0], Save):
            self._noted.update((id(one), one) for one in news if isinstance(one, Note))
        return news
