"""When a receiver of alarms gets which events: events of the log in, messages and positions out.

    idle ── a wanted event ──> gathering ── due ──> sending ── delivered ──> idle
                                                     ^   └──── failed ────> waiting
                                                     └──────── due ────────────┘

Events are delivered in order and at least once. A position is the id up to which every wanted event is
delivered; the shell stores it, and a receiver begins behind it after a restart. At most one message is on its
way. A message that fails is not sent again as it was: the next one also stands for what happened meanwhile.
In quiet hours nothing is sent, and what waits is one message afterwards.

What waits is bounded, so that a receiver that never answers costs little. Events beyond the bound, and those
that the log no longer held, are counted in the next message. Times are monotonic seconds.
"""

import itertools
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import inf
from typing import assert_never

from gpu_agent.wire.api import RegistryEvent

MOST_WAITING, MOST_WAITING_BYTES = 1000, 1024 * 1024
"""Events that wait for a receiver at most, and what they take; beyond that the oldest are only counted."""
GATHER_SECONDS = 2.0
"""How long the first event of a group waits for those that follow from the same cause."""
FIRST_RETRY_SECONDS, MOST_RETRY_SECONDS = 5.0, 300.0
"""The first pause after a failed message; each further one is twice as long, up to the second."""
MOST_RETRY_AFTER_SECONDS = 3600.0
"""A receiver that asks for a longer pause is asked again after this one."""
_EVENT_BYTES = 200
"""Of one without fields."""
STORE_EVERY = 1000
"""After so many events of which none was wanted, the position is stored: it must not leave the log."""


class ReceiverState(StrEnum):
    """What a receiver waits for."""

    IDLE = "idle"
    GATHERING = "gathering"
    SENDING = "sending"
    WAITING = "waiting"
    """After a failure, for the next attempt."""


@dataclass(frozen=True, slots=True)
class EventsRead:
    """The event log was read up to an event."""

    wanted: tuple[RegistryEvent, ...]
    """Those that this receiver wants, in order."""
    through: int
    """The id of the last event that was read."""
    missed: int = 0
    """So many events before were not in the log any more."""


@dataclass(frozen=True, slots=True)
class MessageDelivered:
    """The receiver has taken the message."""


@dataclass(frozen=True, slots=True)
class MessageFailed:
    """The receiver has not taken the message, or nobody knows whether it has."""

    lasting: bool = False
    """Whether it will fail until a person changes something, such as a wrong address."""
    retry_after_seconds: float = 0.0
    """The pause for which the receiver asked."""


@dataclass(frozen=True, slots=True)
class QuietHoursChanged:
    """Quiet hours have begun or ended."""

    quiet: bool


@dataclass(frozen=True, slots=True)
class TrialDelivered:
    """The receiver has taken a test message: what has failed may be sent again now."""


ReceiverEvent = EventsRead | MessageDelivered | MessageFailed | QuietHoursChanged | TrialDelivered


@dataclass(frozen=True, slots=True)
class SendMessage:
    """Send one message that stands for these events; then report its outcome."""

    events: tuple[RegistryEvent, ...]
    missed: int
    """So many events before them cannot be named any more."""
    through: int
    """The position once it is delivered."""


@dataclass(frozen=True, slots=True)
class StorePosition:
    """Store that every wanted event up to this one is delivered."""

    position: int


ReceiverAction = SendMessage | StorePosition


class AlarmReceiver:
    """The state of one receiver; a new one goes on from a stored position."""

    def __init__(self, position: int, *, group_seconds: float, chance: Callable[[], float]) -> None:
        """With `group_seconds` of 0 each event is a message of its own. `chance` draws from 0 to 1."""
        self._group_seconds = group_seconds
        self._chance = chance
        self.state = ReceiverState.IDLE
        self.quiet = False
        self.position = position
        """Every wanted event up to this id is delivered."""
        self.read_through = position
        """The id of the last event that was read."""
        self.failures = 0
        """Attempts that failed since the last success."""
        self._stored = position
        self._waiting: deque[RegistryEvent] = deque()
        self._bytes = 0
        """What those that wait take."""
        self._missed = 0
        self._sent: SendMessage | None = None
        self._sent_at = -inf
        self._due = inf

    @property
    def waiting(self) -> int:
        """How many events are not delivered, without those that can only be counted."""
        return len(self._waiting) + (len(self._sent.events) if self._sent else 0)

    @property
    def oldest(self) -> RegistryEvent | None:
        """The first event that is not delivered; None without any."""
        first = self._sent.events if self._sent and self._sent.events else self._waiting
        return first[0] if first else None

    @property
    def deadline(self) -> float | None:
        """When it wants to be woken; None while it waits for something else."""
        waits = self.state in (ReceiverState.GATHERING, ReceiverState.WAITING)
        return self._due if waits and not self.quiet else None

    def handle(self, event: ReceiverEvent, now: float) -> Sequence[ReceiverAction]:
        """Take in an event; raises `ValueError` for one that cannot happen in this state."""
        match event:
            case EventsRead():
                return self._read(event, now)
            case MessageDelivered():
                return self._delivered(now)
            case MessageFailed():
                return self._failed(event, now)
            case QuietHoursChanged(quiet):
                self.quiet = quiet
                return ()
            case TrialDelivered():
                if self.state is ReceiverState.WAITING:
                    self._due = now
                return ()
            case _ as unreachable:
                assert_never(unreachable)

    def wake(self, now: float) -> Sequence[ReceiverAction]:
        """Send what is due."""
        deadline = self.deadline
        if deadline is None or now < deadline:
            return ()
        self._sent, self._sent_at = self._next_message(), now
        self.state = ReceiverState.SENDING
        return (self._sent,)

    def _read(self, event: EventsRead, now: float) -> Sequence[ReceiverAction]:
        if event.through < self.read_through:
            raise ValueError(f"event {event.through} was read after {self.read_through}")
        self.read_through = event.through
        self._missed += event.missed
        self._waiting.extend(event.wanted)
        self._bytes += sum(map(_size_of, event.wanted))
        self._bound()
        if self.state is ReceiverState.IDLE:
            if self._waiting or self._missed:
                self._gather(now)
            else:
                self.position = event.through
                if self.position - self._stored >= STORE_EVERY:
                    return (self._store(),)
        return ()

    def _delivered(self, now: float) -> Sequence[ReceiverAction]:
        self.position, self.failures = self._take_sent().through, 0
        self.state = ReceiverState.IDLE
        if self._waiting or self._missed:
            self._gather(now)
        return (self._store(),)

    def _failed(self, event: MessageFailed, now: float) -> Sequence[ReceiverAction]:
        sent = self._take_sent()
        self._waiting.extendleft(reversed(sent.events))
        self._bytes += sum(map(_size_of, sent.events))
        self._missed += sent.missed
        self._bound()
        self.failures += 1
        pause = MOST_RETRY_SECONDS
        if not event.lasting:
            pause = min(FIRST_RETRY_SECONDS * 2.0 ** min(self.failures - 1, 10), MOST_RETRY_SECONDS)
        pause *= 0.5 + self._chance() / 2
        asked = min(max(event.retry_after_seconds, 0.0), MOST_RETRY_AFTER_SECONDS)
        self._due = now + max(pause, asked)
        self.state = ReceiverState.WAITING
        return ()

    def _take_sent(self) -> SendMessage:
        sent, self._sent = self._sent, None
        if sent is None:
            raise ValueError(f"no message is on its way while the receiver is {self.state}")
        return sent

    def _gather(self, now: float) -> None:
        self.state = ReceiverState.GATHERING
        self._due = max(now + min(GATHER_SECONDS, self._group_seconds), self._sent_at + self._group_seconds)

    def _next_message(self) -> SendMessage:
        """Take what waits: all of it, or only the first where each event is a message of its own."""
        missed, self._missed = self._missed, 0
        most = MOST_WAITING if self._group_seconds else 0 if missed else 1
        events = tuple(self._take_first() for _ in range(min(most, len(self._waiting))))
        through = (self._waiting[0].id or 0) - 1 if self._waiting else self.read_through
        return SendMessage(events, missed, through)

    def _bound(self) -> None:
        """Count the oldest events that are too many, or take too much; the newest always stays."""
        while len(self._waiting) > MOST_WAITING or (
            self._bytes > MOST_WAITING_BYTES and len(self._waiting) > 1
        ):
            self._take_first()
            self._missed += 1

    def _take_first(self) -> RegistryEvent:
        first = self._waiting.popleft()
        self._bytes -= _size_of(first)
        return first

    def _store(self) -> StorePosition:
        self._stored = self.position
        return StorePosition(self.position)


def _size_of(event: RegistryEvent) -> int:
    """Return about how many bytes an event takes: nodes and clients choose the length of its fields."""
    return _EVENT_BYTES + sum(len(name) + len(str(value)) for name, value in event.fields.items())


def missed_before(position: int, events: Sequence[RegistryEvent]) -> int:
    """Count the ids behind a position that these events, the next ones in the log, leave out."""
    ids = [position, *(one.id or 0 for one in events)]
    return sum(after - before - 1 for before, after in itertools.pairwise(ids))
