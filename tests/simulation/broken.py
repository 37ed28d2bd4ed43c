"""What a simulation must never see, by name, and the error that says where it saw it."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from enum import StrEnum


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


class BrokenError(AssertionError):
    """An invariant did not hold."""

    def __init__(self, invariant: Invariant, detail: str) -> None:
        self.invariant, self.detail = invariant, detail
        super().__init__(f"{invariant.name} ({invariant}): {detail}")


_held: ContextVar[frozenset[Invariant]] = ContextVar("held", default=frozenset(Invariant))


def hold(invariant: Invariant, holds: object, detail: str) -> None:
    """Raise where an invariant does not hold. Where the detail is costly to write, ask before calling."""
    if not holds and invariant in _held.get():
        raise BrokenError(invariant, detail)


@contextmanager
def only(*invariants: Invariant) -> Iterator[None]:
    """Hold no other invariants for the length of a block."""
    token = _held.set(frozenset(invariants))
    try:
        yield
    finally:
        _held.reset(token)
