"""What a peer may use of the registry (§2): connections, memory, and token buckets for its messages.

Knows no clock: the time is an argument, in monotonic seconds. Closes nothing itself: `node_connection`
enforces these limits. `docs/reference/limits.md` explains them to operators.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil

from gpu_agent.registry.tokens import Credential
from gpu_agent.wire.codec import MAX_FRAME_BYTES

MAX_QUOTAS = 65_536
"""Beyond this many, the quota used longest ago is dropped, and is full when it is needed again."""

SOONEST_RETRY_SECONDS = 2.0
LATEST_RETRY_SECONDS = 30.0
"""No peer waits longer than this, however many others were refused before it."""

RELIEF = 7 / 8
"""Connections are evicted down to this share of the memory budget: the next byte must not exceed it."""

_PREPAID_FRAMES = 16
_RATE_PERIOD_SECONDS = 2.0
_SLOWEST_PER_SECOND = 75.0
"""Registrations that are expected as long as none were counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The limits of one registry. Counts are connections unless the name says otherwise."""

    max_connections: int = 16384
    max_handshakes: int = 4096
    """Connections whose handshake is not complete; beyond it the oldest of them is closed."""
    max_unregistered: int = 12288
    """Connections that completed the handshake and have not registered; beyond it handshakes get a 503."""
    max_unregistered_per_origin: int = 10240
    handshake_timeout_seconds: float = 5.0
    handshake_patience_seconds: float = 8.0
    """A handshake that waited longer, in the fair queue or for a leader, gets a 503: its peer is about to
    give up, as an agent does after 10 s. To refuse one costs as much as to accept it, and it comes again."""
    registration_timeout_seconds: float = 10.0
    """A connection without a valid registration by then is closed with 1008."""
    close_timeout_seconds: float = 2.0

    max_handshake_bytes: int = 16 * 1024
    max_frame_bytes: int = MAX_FRAME_BYTES
    max_unsent_bytes: int = 64 * 1024
    """A peer that leaves more than this unread is disconnected."""
    max_held_bytes: int = 64 * 1024 * 1024
    """Of unfinished messages and unread answers of all connections; beyond it the largest are closed."""

    frames_per_second: float = 100.0
    """Frames of any kind on one connection; each 2 KiB count as one more. Far above any heartbeat rate."""
    frame_burst: int = 1200
    """Room for two of the longest frames."""
    messages_per_minute: float = 60.0
    """Messages other than heartbeats, readable or not: of one node over all its connections, or of one
    connection where no node is authenticated."""
    message_burst: int = 60

    @property
    def frame_rate(self) -> "Rate":
        """How fast the frames of one connection may come; most heartbeats need not even read the clock."""
        prepaid = min(_PREPAID_FRAMES, self.frame_burst // 2)
        return Rate.of(per_second=self.frames_per_second, burst=self.frame_burst, prepaid=prepaid)

    @property
    def message_rate(self) -> "Rate":
        """How fast the messages of one connection may come, heartbeats not counted."""
        return Rate.of(per_second=self.messages_per_minute / 60, burst=self.message_burst)


_ROUNDING_TOKENS = 1e-3
"""More than what the rounding of a clock's time amounts to in one burst."""


@dataclass(frozen=True, slots=True)
class Rate:
    """The rate of a token bucket.

    A bucket's only state is `empty_until`, the time when all that it spent is refilled.
    """

    seconds_per_token: float
    burst_seconds: float
    prepaid: int = 0
    """How many tokens may be taken in advance, to be used later without reading the clock."""

    @classmethod
    def of(cls, *, per_second: float, burst: float, prepaid: int = 0) -> "Rate":
        """Allow a burst, which includes the prepaid tokens, and then so many a second."""
        return cls(1 / per_second, (burst - prepaid) / per_second, prepaid)

    def consume(self, empty_until: float, now: float, amount: float) -> float | None:
        """Return the new `empty_until`, or None where there are not enough tokens; it begins as 0."""
        then = max(now, empty_until) + amount * self.seconds_per_token
        rounding = self.seconds_per_token * _ROUNDING_TOKENS
        return None if then - now > self.burst_seconds + rounding else then

    def consume_and_prepay(self, empty_until: float, now: float, amount: int) -> tuple[float, int] | None:
        """Return the new `empty_until` and how many prepaid tokens there are now.

        Prepays nothing where there is no room for it; None where even the amount is not there.
        """
        for prepaid in (self.prepaid, 0):
            then = self.consume(empty_until, now, amount + prepaid)
            if then is not None:
                return then, prepaid
        return None


class TokenBucket:
    """The tokens of one peer; they refill with time."""

    __slots__ = ("_empty_until", "_rate")

    def __init__(self, rate: Rate) -> None:
        self._rate = rate
        self._empty_until = 0.0

    def consume(self, now: float, amount: float = 1.0) -> bool:
        """Take tokens; False, and nothing taken, where there are not enough."""
        then = self._rate.consume(self._empty_until, now, amount)
        if then is None:
            return False
        self._empty_until = then
        return True

    def refill_seconds(self, now: float) -> float:
        """Return in how many seconds there is one token again."""
        return max(0.0, self._empty_until + self._rate.seconds_per_token - self._rate.burst_seconds - now)


class MessageQuotas:
    """The message quota of each authenticated node, over all its connections.

    What a node reports is stored, logged and sent to all subscribers. A node that reconnects again and again
    must not be served more messages than one that stays: it would fill the disk and push the history of other
    nodes out.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._by_holder: dict[str, TokenBucket] = {}

    def bucket(self, credential: Credential, *, uses: int | None) -> TokenBucket | None:
        """Return the bucket of a credential's holder; None where any number of nodes may hold it.

        A node has one bucket, whichever of its tokens it presents; a join token has as much as its uses
        together.
        """
        node_id = credential.node_id
        if node_id is None and uses is None:
            return None
        holder, holders = (credential.token_id, uses or 1) if node_id is None else (f"node {node_id}", 1)
        bucket = self._by_holder.pop(holder, None) or self._full_bucket(holders)
        self._by_holder[holder] = bucket
        if len(self._by_holder) > MAX_QUOTAS:
            del self._by_holder[next(iter(self._by_holder))]
        return bucket

    def _full_bucket(self, holders: int) -> TokenBucket:
        limits = self._limits
        per_second, burst = limits.messages_per_minute / 60 * holders, limits.message_burst * holders
        return TokenBucket(Rate.of(per_second=per_second, burst=burst))


class PendingConnections:
    """Connections that have not registered: how many, from where, and which one to close for a new one.

    A connection whose handshake is not complete has shown nothing: when there are too many, the oldest is
    closed. One whose handshake is complete has presented a credential, where one is required: when there are
    too many of these, new handshakes are refused instead.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._handshakes: dict[int, None] = {}
        """By number, the oldest first."""
        self._unregistered: dict[int, str] = {}
        """Origins by number."""
        self._by_origin: Counter[str] = Counter()

    @property
    def size(self) -> int:
        """How many connections there are of both kinds."""
        return len(self._handshakes) + len(self._unregistered)

    def connected(self, number: int) -> int | None:
        """Count a new connection; returns the one to close where there are too many handshakes."""
        self._handshakes[number] = None
        return self.oldest_handshake() if len(self._handshakes) > self._limits.max_handshakes else None

    def oldest_handshake(self) -> int | None:
        """Return the connection whose handshake has taken longest."""
        return next(iter(self._handshakes), None)

    def is_full_for(self, origin: str) -> bool:
        """Whether too many connections are unregistered, in total or of this origin."""
        return (
            len(self._unregistered) >= self._limits.max_unregistered
            or self._by_origin[origin] >= self._limits.max_unregistered_per_origin
        )

    def handshake_succeeded(self, number: int, origin: str) -> None:
        """Count a connection as unregistered; one that is already closed is not counted."""
        if number in self._handshakes:
            del self._handshakes[number]
            self._unregistered[number] = origin
            self._by_origin[origin] += 1

    def remove(self, number: int) -> None:
        """Count a connection no longer: it has registered, or is closed."""
        self._handshakes.pop(number, None)
        origin = self._unregistered.pop(number, None)
        if origin is not None:
            self._by_origin[origin] -= 1
            if not self._by_origin[origin]:
                del self._by_origin[origin]


class RetrySchedule:
    """Gives each refused peer its own time to retry: if all retried at once, they would be refused again.

    Measures how fast registrations complete, and hands out retry times at that rate.
    """

    def __init__(self) -> None:
        self._period_began = 0.0
        self._registered = 0
        self._per_second = _SLOWEST_PER_SECOND
        self._last_retry_at = 0.0

    def registered(self, now: float) -> None:
        """Count a registration."""
        elapsed = now - self._period_began
        if elapsed >= _RATE_PERIOD_SECONDS:
            self._per_second = max(_SLOWEST_PER_SECOND, self._registered / elapsed)
            self._period_began, self._registered = now, 0
        self._registered += 1

    def next_retry_seconds(self, now: float) -> int:
        """Hand out the next retry time, in whole seconds from now."""
        earliest = max(self._last_retry_at, now + SOONEST_RETRY_SECONDS)
        self._last_retry_at = min(earliest + 1 / self._per_second, now + LATEST_RETRY_SECONDS)
        return ceil(self._last_retry_at - now)


class MemoryBudget:
    """Bytes held for all connections together: unfinished messages, and answers that peers have not read.

    Each connection is within its own limits; thousands of them would still need more memory than there is.
    Beyond the budget the largest are evicted, unregistered ones first.
    """

    def __init__(self, *, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._held: dict[int, int] = {}
        self.total_bytes = 0

    @property
    def exceeded(self) -> bool:
        """Whether more is held than the budget allows."""
        return self.total_bytes > self._max_bytes

    @property
    def holders(self) -> tuple[int, ...]:
        """The numbers of the connections that hold something."""
        return tuple(self._held)

    def record(self, number: int, held_bytes: int) -> None:
        """Record how many bytes a connection holds now."""
        self.total_bytes += held_bytes - self._held.pop(number, 0)
        if held_bytes:
            self._held[number] = held_bytes

    def evict(self, is_registered: Callable[[int], bool]) -> list[int]:
        """Return the connections to close, and count their bytes no longer; none while the budget holds."""
        evicted: list[int] = []
        if not self.exceeded:
            return evicted
        for number in sorted(self._held, key=lambda one: (is_registered(one), -self._held[one])):
            if self.total_bytes <= self._max_bytes * RELIEF:
                break
            self.record(number, 0)
            evicted.append(number)
        return evicted
