"""What a simulation must never see, by name, and the error that says where it saw it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from enum import StrEnum
from typing import Protocol

from gpu_agent.registry.actions import Action, LogEvent, Save
from gpu_agent.registry.events import Event
from gpu_agent.server.effects import Doing
from gpu_agent.session.machine import SessionMachine
from gpu_agent.store.base import Batch, Loaded


class Invariant(StrEnum):
    """Each is one promise of the protocol page, kept through any chaos."""

    ONE_SESSION = "one live session per id"
    SUPERSEDED_IS_DEAF = "frames of a superseded session change nothing"
    ONLY_READY = "only ready, connected, uncordoned nodes get new claims"
    NO_PLACE_TWICE = "no place is claimed twice"
    ONE_CLAIM = "one claim per job"
    CLAIM_ENDS = "a claim that nobody renews ends"
    WISH_KEPT = "no acknowledged wish is lost"
    OWN_DRAIN_KEPT = "a drain of the owner's own lasts until somebody takes the node back"
    CLAIM_KEPT = "no acknowledged claim or release is lost"
    CREDENTIAL_KEPT = "no acknowledged token is lost, and no revoked one lives on"
    USES_COUNTED = "a join token registers as many nodes as it has uses"
    SAVED_FIRST = "nothing is told before its save"
    COMES_BACK = "every node that lives is ready in the end"
    SILENCE_NOTICED = "a silent node is offline within its timeout and a scan"
    NO_FALSE_VERDICT = "nobody who beats is called offline"
    EVERY_REASON = "every node is able or excluded for a reason"
    KNOWN_ARROW = "no arrow outside the table"
    HISTORY_IN_ORDER = "the log tells each node's moves in their order"
    TOLD_IS_KNOWN = "what a node told last is what the registry knows of it"
    EVENTS_KEPT = "every event that was told is kept, under a number that grows"
    FLAPS_ARE_DAMPED = "a node that flaps gets no jobs before it has calmed down"
    AGENT_MOVES = "an agent always waits for something that comes"
    EPOCHS_GROW = "epochs grow"
    NO_PING_PONG = "clones end with one winner and do not fight"
    STORE_IS_A_PREFIX = "the store holds a prefix of what was saved"
    NO_CRASH = "no machine raises"
    PROMISES_ADD_UP = "promised GPU memory is what the claims need"


class InvariantError(AssertionError):
    """An invariant did not hold."""

    def __init__(self, invariant: Invariant, detail: str) -> None:
        self.invariant, self.detail = invariant, detail
        super().__init__(f"{invariant.name} ({invariant}): {detail}")


_held: ContextVar[frozenset[Invariant]] = ContextVar("held", default=frozenset(Invariant))


def hold(invariant: Invariant, holds: object, detail: str) -> None:
    """Raise where an invariant does not hold. Where the detail is costly to write, ask before calling."""
    if not holds and invariant in _held.get():
        raise InvariantError(invariant, detail)


@contextmanager
def only(*invariants: Invariant) -> Iterator[None]:
    """Hold no other invariants for the length of a block."""
    token = _held.set(frozenset(invariants))
    try:
        yield
    finally:
        _held.reset(token)


# Those who watch: told of each step of each machine, they hold it to the invariants.
#
# `Watch` does nothing at all, so that each watcher overrides what it needs; `Watchers` calls those that
# do.


class ObservedAgent(Protocol):
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


class Observer:
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

    def agent_moved(self, agent: ObservedAgent) -> None:
        """An agent has carried out all that its session asked for."""

    def glance(self) -> None:
        """Some seconds have passed, and the registry runs."""


class Observers(Observer):
    """Calls each watcher for what it watches, in order."""

    def __init__(self, watchers: Iterable[Observer]) -> None:
        everyone = tuple(watchers)
        self._before: list[Callable[[Event | None], None]] = [
            one.before for one in everyone if type(one).before is not Observer.before
        ]
        self._decided: list[Callable[[Event | None, Sequence[Action]], None]] = [
            one.decided for one in everyone if type(one).decided is not Observer.decided
        ]
        self._carried: list[Callable[[Doing], None]] = [
            one.carried for one in everyone if type(one).carried is not Observer.carried
        ]
        self._everyone = everyone
        self._noted: dict[int, LogEvent] = {}

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

    def agent_moved(self, agent: ObservedAgent) -> None:
        for one in self._everyone:
            one.agent_moved(agent)

    def glance(self) -> None:
        for one in self._everyone:
            one.glance()

    def _news(self, actions: Sequence[Action]) -> Sequence[Action]:
        """Leave out notes that were decided before: what was not saved is noted again with its next save."""
        news = [one for one in actions if id(one) not in self._noted]
        if isinstance(actions[0], Save):
            self._noted.update((id(one), one) for one in news if isinstance(one, LogEvent))
        return news
