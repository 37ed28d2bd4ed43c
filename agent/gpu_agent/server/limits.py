"""What a peer may use of the registry (§2): connections, memory, and token buckets for its messages.

Knows no clock: the time is an argument, in monotonic seconds. Closes nothing itself: `node_connection`
enforces these limits. `docs/operating.md` explains them to operators.
"""

from collections import Counter
from dataclasses import dataclass
from math import ceil
from typing import Generic, Protocol, TypeVar

from gpu_agent.registry.credentials import Credential
from gpu_agent.wire.codec import MAX_FRAME_BYTES

# How much of something a peer may do: so much at once, and so much a second after that.
#
# Knows no clock: the time is handed in, in monotonic seconds.


@dataclass(frozen=True, slots=True)
class Rate:
    """What is allowed, to each of those who share it."""

    price_seconds: float
    """Time that one takes to be allowed again."""
    at_once_seconds: float
    ahead: int = 0
    """So many more may be paid for at a time, and be had without asking what time it is."""

    @classmethod
    def of(cls, *, per_second: float, at_once: float, ahead: int = 0) -> "Rate":
        """Allow so many at once, those that are paid ahead among them, and so many a second after that."""
        return cls(1 / per_second, (at_once - ahead) / per_second, ahead)

    def after(self, paid_until: float, now: float, amount: float) -> float | None:
        """Return until when somebody has spent once this is added; None when that is not allowed.

        The one number is all that has to be remembered of a peer; it begins as 0.
        """
        then = (max(now, paid_until)) + amount * self.price_seconds
        return None if then - now > self.at_once_seconds else then

    def paid(self, paid_until: float, now: float, missing: int) -> tuple[float, int] | None:
        """Add what is missing and what may be paid ahead: until when is spent then, and how many are left.

        Where there is no room for those ahead, none are left; None when not even what is missing is allowed.
        """
        for ahead in (self.ahead, 0):
            then = self.after(paid_until, now, missing + ahead)
            if then is not None:
                return then, ahead
        return None


class TokenBucket:
    """What is left to one peer; it fills up again with time."""

    __slots__ = ("_paid_until", "_rate")

    def __init__(self, rate: Rate) -> None:
        self._rate = rate
        self._paid_until = 0.0

    def spend(self, now: float, amount: float = 1.0) -> bool:
        """Take from what is left; False, and nothing taken, when it is not enough."""
        after = self._rate.after(self._paid_until, now, amount)
        if after is None:
            return False
        self._paid_until = after
        return True

    def refills_in(self, now: float) -> float:
        """Return in how many seconds there is enough for one again."""
        return max(0.0, self._paid_until + self._rate.price_seconds - self._rate.at_once_seconds - now)


# What a node may ask of the registry before and after it has proven itself (§2).
#
# Figures only; who is held to them is told where each is enforced. `docs/operating.md` explains them
# to operators.


_FRAMES_AHEAD = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Of one registry. Counts are connections unless their name says otherwise."""

    max_connections: int = 16384
    max_handshakes: int = 4096
    """Peers whose handshake is not over; beyond, the one that has taken longest makes room."""
    max_unregistered: int = 12288
    """Peers that came in and have not registered; beyond, others are told to come later."""
    max_unregistered_per_origin: int = 10240
    handshake_timeout_seconds: float = 5.0
    handshake_patience_seconds: float = 4.0
    """A handshake that waited for its turn for longer is told to come later: its peer is about to give up."""
    registration_timeout_seconds: float = 10.0
    """A connection without a valid registration by then is closed with 1008."""
    close_timeout_seconds: float = 2.0

    max_handshake_bytes: int = 16 * 1024
    max_frame_bytes: int = MAX_FRAME_BYTES
    max_unsent_bytes: int = 64 * 1024
    """A peer that leaves more than this unread is cut off."""
    max_held_bytes: int = 64 * 1024 * 1024
    """Of all peers' unfinished messages and unread answers together; beyond, the largest go."""

    frames_per_second: float = 100.0
    """Of one connection, of any kind; one counts again for each 2 KiB. Far above any rhythm that is told."""
    frame_burst: int = 1200
    """Room for two of the longest."""
    messages_per_minute: float = 60.0
    """Of one node over all its connections, or of one connection where none is proven: readable messages that
    are no beats, and unreadable ones."""
    message_burst: int = 60

    @property
    def frames(self) -> Rate:
        """How fast the frames of one connection may come; most beats need not even ask for the time."""
        ahead = min(_FRAMES_AHEAD, self.frame_burst // 2)
        return Rate.of(per_second=self.frames_per_second, at_once=self.frame_burst, ahead=ahead)

    @property
    def errands(self) -> Rate:
        """How fast the messages besides beats of one connection may come."""
        return Rate.of(per_second=self.messages_per_minute / 60, at_once=self.message_burst)


# How much whoever shows a token may say besides beats, over however many connections.
#
# What a node says of itself is kept, logged and told to all who follow. So one node that connects again
# and
# again must not be heard oftener than one that stays, or it fills the disk and pushes everybody else's
# past
# out of what is kept. Knows no clock, as an allowance knows none.


MOST_REMEMBERED = 65_536
"""Beyond so many, the one that was asked for longest ago is forgotten, and full again."""


class MessageQuotas:
    """One allowance for each node, and for each join token as many as it has uses."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._by_holder: dict[str, TokenBucket] = {}

    def of(self, credential: Credential, *, uses: int | None) -> TokenBucket | None:
        """Return what the holder of a credential has left; None where any number may hold it.

        A credential that stands for one node is that node's, whichever of its tokens it is.
        """
        node_id = credential.node_id
        if node_id is None and uses is None:
            return None
        holder, holders = (credential.token_id, uses or 1) if node_id is None else (f"node {node_id}", 1)
        allowance = self._by_holder.pop(holder, None) or self._full(holders)
        self._by_holder[holder] = allowance
        if len(self._by_holder) > MOST_REMEMBERED:
            del self._by_holder[next(iter(self._by_holder))]
        return allowance

    def _full(self, holders: int) -> TokenBucket:
        limits = self._limits
        per_second, at_once = limits.messages_per_minute / 60 * holders, limits.message_burst * holders
        return TokenBucket(Rate.of(per_second=per_second, at_once=at_once))


# Who has connected and not registered yet: how many, from where, and who makes room.
#
# Two kinds wait here. Peers whose handshake is not over cost little and are owed nothing: when there
# are too many, the one that has taken longest goes. Peers that came in have shown a credential, where
# one is asked for: when there are too many of them, others are told to come later. Closes nothing.


class Peer(Protocol):
    """What is asked of whoever waits here."""

    @property
    def origin(self) -> str:
        """Where it comes from."""


PeerT = TypeVar("PeerT", bound=Peer)


class PendingConnections(Generic[PeerT]):
    """All who wait, in the order of their coming."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._shaking: dict[PeerT, None] = {}
        self._inside: set[PeerT] = set()
        self._by_origin: Counter[str] = Counter()

    @property
    def size(self) -> int:
        """How many wait, of both kinds."""
        return len(self._shaking) + len(self._inside)

    def connected(self, comer: PeerT) -> PeerT | None:
        """Let somebody begin a handshake; returns who has to make room for that."""
        self._shaking[comer] = None
        return self.longest_shaking() if len(self._shaking) > self._limits.max_handshakes else None

    def longest_shaking(self) -> PeerT | None:
        """Return whose handshake has taken longest."""
        return next(iter(self._shaking), None)

    def is_full_for(self, comer: PeerT) -> bool:
        """Say whether too many wait inside already, in all or of this one's origin."""
        return (
            len(self._inside) >= self._limits.max_unregistered
            or self._by_origin[comer.origin] >= self._limits.max_unregistered_per_origin
        )

    def handshake_succeeded(self, comer: PeerT) -> None:
        """A handshake succeeded."""
        if comer in self._shaking:
            del self._shaking[comer]
            self._inside.add(comer)
            self._by_origin[comer.origin] += 1

    def leaves(self, comer: PeerT) -> None:
        """Somebody has registered, or is gone; who is not here leaves nothing."""
        if comer in self._inside:
            self._inside.discard(comer)
            self._by_origin[comer.origin] -= 1
            if not self._by_origin[comer.origin]:
                del self._by_origin[comer.origin]
        self._shaking.pop(comer, None)


# When those who cannot be served now should come again: one after the other, as fast as they can be
# served.
#
# Told all the same time, they would come together again. Measures how fast registrations end, and
# gives each who asks the next free place after that. Turns nobody away itself.


SOONEST_SECONDS = 2.0
LATEST_SECONDS = 30.0
"""Nobody is kept away for longer, whoever else asked before."""

_MEASURED_SECONDS = 2.0
_SLOWEST_PER_SECOND = 50.0


class RetrySchedule:
    """Times are monotonic seconds."""

    def __init__(self) -> None:
        self._since = 0.0
        self._served = 0
        self._per_second = _SLOWEST_PER_SECOND
        self._taken_until = 0.0

    def served(self, now: float) -> None:
        """Somebody has registered."""
        elapsed = now - self._since
        if elapsed >= _MEASURED_SECONDS:
            self._per_second = max(_SLOWEST_PER_SECOND, self._served / elapsed)
            self._since, self._served = now, 0
        self._served += 1

    def next_in(self, now: float) -> int:
        """Give away the next free place; returns in how many whole seconds it is."""
        earliest = max(self._taken_until, now + SOONEST_SECONDS)
        self._taken_until = min(earliest + 1 / self._per_second, now + LATEST_SECONDS)
        return ceil(self._taken_until - now)


# What all peers together make the registry hold: unfinished messages, and answers that nobody reads.
#
# Each alone is within its limits; thousands of them would still be more memory than there is. When
# the sum is beyond what is allowed, the largest give theirs up, those first that have not registered.
# Counts only: a holder knows itself what it holds.


RELIEF = 7 / 8
"""Down to this share of what is allowed, so that the next byte is not the next occasion."""


class Holder(Protocol):
    """What is asked of whoever makes the registry hold something."""

    @property
    def is_registered(self) -> bool:
        """Whether it has proven to be a node."""

    @property
    def held_bytes(self) -> int:
        """How much it is at this moment."""

    def give_up(self) -> None:
        """Let go of all of it."""


HolderT = TypeVar("HolderT", bound=Holder)


class MemoryBudget(Generic[HolderT]):
    """Who holds how much, as far as it was noted."""

    def __init__(self, *, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._held: dict[HolderT, int] = {}
        self._relieving = False
        self.total_bytes = 0

    def note(self, holder: HolderT, held: int) -> None:
        """Take note of what a holder holds now; too much in all, and the largest give up."""
        self._write(holder, held)
        if self.total_bytes > self._most_bytes and not self._relieving:
            self._relieving = True
            self._relieve()
            self._relieving = False

    def _relieve(self) -> None:
        for holder in tuple(self._held):
            self._write(holder, holder.held_bytes)  # unread answers may have been read meanwhile
        if self.total_bytes <= self._most_bytes:
            return
        for holder in sorted(self._held, key=lambda one: (one.is_registered, -self._held[one])):
            if self.total_bytes <= self._most_bytes * RELIEF:
                return
            self._write(holder, 0)
            holder.give_up()

    def _write(self, holder: HolderT, held: int) -> None:
        self.total_bytes += held - self._held.pop(holder, 0)
        if held:
            self._held[holder] = held
