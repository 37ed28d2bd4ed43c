"""The invariants of a simulation by name, and the observers that hold each step of each machine to them."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from enum import StrEnum
from typing import Protocol

from gpu_agent.registry.actions import Output
from gpu_agent.registry.events import Event
from gpu_agent.server.effects import Executable
from gpu_agent.session.machine import SessionMachine
from gpu_agent.store.base import Batch, Loaded


class Invariant(StrEnum):
    """Each is one promise of the protocol page that holds through any fault."""

    ONE_SESSION = "one live session per id"
    SUPERSEDED_IS_IGNORED = "frames of a superseded session change nothing"
    ONLY_READY = "only ready, connected, uncordoned nodes get new claims"
    NO_SLOT_TWICE = "no slot is claimed twice"
    ONE_CLAIM = "one claim per job"
    CLAIM_ENDS = "a claim that is not renewed ends"
    EXCLUSIVE_ALONE = "no GPU is in two exclusive claims"
    NEVER_MIXED = "no GPU is in an exclusive and in a shared claim"
    GANG_IS_WHOLE = "a claim on several nodes is whole or not"
    SUPERSEDED_CLAIM = "a superseded claim_id changes nothing"
    NO_STARVATION = "what the first waiting job has reserved is given to no job behind it"
    WHOLE_OR_MIG = "no claim has whole GPUs and MIG devices, and none a part of another one's GPU"
    GPU_CORDON = "a cordoned GPU is given to no new claim"
    CHECKS_HOLD = "no node that failed a required check is ready, and no GPU that did is in a new claim"
    HELD_IS_NOT_GIVEN = "what an ended claim holds is not given to another"
    ONE_GPU = "one GPU UUID under two nodes is one GPU"
    DESIRED_STATE_HOLDS = "no acknowledged request of an operator is lost"
    OWN_DRAIN_HOLDS = "a drain that an owner requested lasts until an owner or operator ends it"
    CLAIM_HOLDS = "no acknowledged claim or release is lost"
    CREDENTIAL_HOLDS = "no acknowledged token is lost, and no revoked one lives on"
    USES_COUNTED = "a join token registers as many nodes as it has uses"
    STORED_FIRST = "nothing is sent before it is stored"
    COMES_BACK = "every node that lives is ready in the end"
    SILENCE_NOTICED = "a silent node is offline within its timeout and a scan"
    NO_FALSE_TIMEOUT = "no node that sends heartbeats times out"
    EVERY_REASON = "every node is eligible or excluded for a reason"
    KNOWN_TRANSITION = "no transition outside the table"
    HISTORY_IN_ORDER = "the event log has each node's transitions in their order"
    REPORTED_IS_KNOWN = "the registry knows what a node reported last"
    EVENTS_STORED = "every published event is stored, under an id that grows"
    FLAPS_ARE_DAMPED = "a node that flaps gets no jobs before it has calmed down"
    AGENT_MOVES = "an agent always waits for something that comes"
    EPOCHS_GROW = "epochs grow"
    NO_PING_PONG = "clones end with one winner and do not fight"
    STORE_IS_A_PREFIX = "the store holds a prefix of what was saved"
    NO_CRASH = "no machine raises"
    RESERVATIONS_ADD_UP = "reserved GPU memory is what the claims need"
    NEWER_SESSION_STANDS = "of two sessions of one node the newer one stands"
    NO_NEEDLESS_REGISTRATION = "a takeover makes no node register again"
    NO_SECOND_NODE = "a registration that was stored and is repeated makes no second node"
    NO_BLIND_DECISION = "while the store fails, time decides nothing and no request changes anything"
    NOTHING_UNSENT = "a token or a node record that was never sent is deleted"


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
    def own_drain(self) -> int | None: ...


class Observer:
    """Sees what happens. Does nothing, so that each observer overrides what it needs."""

    def before(self, event: Event | None) -> None:
        """The registry is about to take an event in, or to be woken (None)."""

    def decided(self, event: Event | None, output: Output) -> None:
        """It has; none of its effects is carried out yet."""

    def executed(self, effect: Executable) -> None:
        """An effect was carried out."""

    def stored(self, outputs: Sequence[Output], batches: Sequence[Batch]) -> None:
        """Batches have reached the disk, and with them the changes of these outputs; perhaps once more."""

    def crashed(self) -> None:
        """The registry's process has ended."""

    def restored(self, loaded: Loaded) -> None:
        """A new process has loaded what was stored."""

    def agent_moved(self, agent: ObservedAgent) -> None:
        """An agent has carried out all that its session asked for."""

    def check_all(self) -> None:
        """Some seconds have passed, and the registry runs."""


class Observers(Observer):
    """Calls each observer for what it overrides, in order."""

    def __init__(self, observers: Iterable[Observer]) -> None:
        everyone = tuple(observers)
        self._before: list[Callable[[Event | None], None]] = [
            one.before for one in everyone if type(one).before is not Observer.before
        ]
        self._decided: list[Callable[[Event | None, Output], None]] = [
            one.decided for one in everyone if type(one).decided is not Observer.decided
        ]
        self._executed: list[Callable[[Executable], None]] = [
            one.executed for one in everyone if type(one).executed is not Observer.executed
        ]
        self._everyone = everyone

    def before(self, event: Event | None) -> None:
        for before in self._before:
            before(event)

    def decided(self, event: Event | None, output: Output) -> None:
        for decided in self._decided:
            decided(event, output)

    def executed(self, effect: Executable) -> None:
        for executed in self._executed:
            executed(effect)

    def stored(self, outputs: Sequence[Output], batches: Sequence[Batch]) -> None:
        for one in self._everyone:
            one.stored(outputs, batches)

    def crashed(self) -> None:
        for one in self._everyone:
            one.crashed()

    def restored(self, loaded: Loaded) -> None:
        for one in self._everyone:
            one.restored(loaded)

    def agent_moved(self, agent: ObservedAgent) -> None:
        for one in self._everyone:
            one.agent_moved(agent)

    def check_all(self) -> None:
        for one in self._everyone:
            one.check_all()
