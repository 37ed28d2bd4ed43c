"""Carries out the fleet's effects once the changes before them are stored: messages, log, events, answers.

Decides nothing and stores nothing.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import assert_never

from gpu_agent.registry.actions import (
    Action,
    Answer,
    Change,
    CloseConnection,
    Level,
    LogEvent,
    Result,
    Save,
    Send,
    SendStatus,
)
from gpu_agent.registry.actions import Action as Asked
from gpu_agent.registry.persistence import StoredDocument
from gpu_agent.runtime.logs import Logger
from gpu_agent.server.clock import Clock
from gpu_agent.server.counters import EventCounters
from gpu_agent.server.event_log import RegistryEventLog
from gpu_agent.server.log_limit import LogLimit, origin_of
from gpu_agent.server.node_listener import NodeListener
from gpu_agent.store.base import Batch, RegistryEvent
from gpu_agent.wire.codec import FrameError, encode
from gpu_agent.wire.codes import CloseCode
from gpu_agent.wire.messages import NodeRegisterAck, NodeStatusMessage, StatusDetails, WireModel

# A list of the fleet's actions made ready for its way: what must be kept first, and what is done then.
#
# A note that is more than a matter of debugging is kept as an event, numbered here. Keeps nothing
# and tells nothing itself.


WRITTEN_AT = "written_at"
DOCUMENT = "document"

LOGGED_ONLY = frozenset({"dispatch_failed", "dispatch_candidate_excluded"})
"""Notes of every failed placement: they go to the log and are counted; nobody's history needs them."""


@dataclass(frozen=True, slots=True)
class Publish:
    """Log an event, and hand it to those who listen."""

    event: RegistryEvent
    level: Level


@dataclass(frozen=True, slots=True)
class Open:
    """Begin and end nodes' histories as their documents are kept and let go."""

    changes: Sequence[Change]


Doing = Send | SendStatus | CloseConnection | Answer | LogEvent | Publish | Open


@dataclass(frozen=True, slots=True)
class Ready:
    """A list made ready."""

    batch: Batch | None
    """What is kept before anything is done; None when that is nothing."""
    save: int | None
    """The number of the save that the batch holds."""
    doings: Sequence[Doing]


class Clerk:
    """Makes lists ready."""

    def __init__(self, chronicle: RegistryEventLog, clock: Clock) -> None:
        self._chronicle = chronicle
        self._clock = clock

    def make_ready(self, actions: Sequence[Asked]) -> Ready:
        """Sort a list, which stays in its order."""
        doings: list[Doing] = []
        changes: list[Change] = []
        events: list[RegistryEvent] = []
        save: int | None = None
        for action in actions:
            if isinstance(action, Save):
                save = action.save
                changes += self._dated(action.changes)
                doings.append(Open(changes))
            elif isinstance(action, LogEvent) and _is_kept(action):
                event = self._event(action)
                events.append(event)
                doings.append(Publish(event, action.level))
            else:
                doings.append(action)
        return Ready(Batch(changes, events) if events or save is not None else None, save, doings)

    def _dated(self, changes: Iterable[Change]) -> list[Change]:
        """Write beside each document when it was written, by wall time."""
        now = round(self._clock.wall(), 3)
        return [
            change
            if change.document is None
            else Change(change.kind, change.key, {WRITTEN_AT: now, DOCUMENT: change.document})
            for change in changes
        ]

    def _event(self, note: LogEvent) -> RegistryEvent:
        node_id = note.fields.get("node_id")
        return RegistryEvent(
            at=round(self._clock.wall(), 3),
            event=note.event,
            node_id=node_id if isinstance(node_id, str) else None,
            fields={name: value for name, value in note.fields.items() if name != "node_id"},
            id=self._chronicle.next_id(),
        )


def unkept(doings: Iterable[Doing]) -> list[Doing]:
    """Take the numbers off events that are told although they could not be kept."""
    return [
        Publish(replace(doing.event, id=None), doing.level) if isinstance(doing, Publish) else doing
        for doing in doings
    ]


def _is_kept(note: LogEvent) -> bool:
    return note.level is not Level.DEBUG and note.event not in LOGGED_ONLY


def restored(kept: Iterable[Change], now: float) -> Iterator[StoredDocument]:
    """Say of each document that was made ready once how long ago that was, by wall time."""
    for change in kept:
        wrapped = change.document or {}
        document, written_at = wrapped.get(DOCUMENT), wrapped.get(WRITTEN_AT)
        if isinstance(document, Mapping) and isinstance(written_at, int | float):
            yield StoredDocument(change.kind, change.key, document, now - written_at)


# Carries out what the fleet wants told, once what it stands behind is kept: sockets, log, answers.
#
# Decides nothing and keeps nothing.


_LOG = Logger("registry")


class EffectsExecutor:
    """The fleet's hands: sockets, log, and those who wait for an answer."""

    def __init__(
        self, chronicle: RegistryEventLog, switchboard: NodeListener, *, clock: Clock, tally: EventCounters
    ) -> None:
        self.answers: dict[int, asyncio.Future[Result]] = {}
        """By `ref`: who waits for which answer."""
        self._chronicle = chronicle
        self._switchboard = switchboard
        self._clock = clock
        self._tally = tally
        self._clerk = Clerk(chronicle, clock)

    def make_ready(self, actions: Sequence[Action]) -> Ready:
        """Sort a list into what must be kept, and what is done once it is."""
        return self._clerk.make_ready(without_repeated_refusals(actions, self._switchboard.log_limit))

    def carry_out(self, doing: Doing) -> None:
        """Do one thing."""
        match doing:
            case Send() | SendStatus() | CloseConnection():
                self._speak(doing)
            case Answer(ref, result):
                self._answer(ref, result)
            case LogEvent():
                self._tally.count(doing.event, doing.fields)
                _EMIT[doing.level](doing.event, **doing.fields)
            case Publish():
                self._publish(doing)
            case Open(changes):
                self._chronicle.keep(changes)
            case _ as unreachable:
                assert_never(unreachable)

    def _speak(self, doing: Send | SendStatus | CloseConnection) -> None:
        match doing:
            case Send(connection, message):
                self._send(connection, message)
                if isinstance(message, NodeRegisterAck):
                    self._switchboard.identify(connection, message.node_id)
            case SendStatus():
                self._send(doing.connection, status_message(doing, self._clock))
            case CloseConnection(connection, code, reason):
                self._switchboard.close(connection, code, reason)

    def _send(self, connection: int, message: WireModel) -> None:
        """Send; a message too long to be sent costs its own connection, never what stands behind it."""
        try:
            text = encode(message)
        except FrameError as error:
            _LOG.error("message_not_sent", connection=connection, problem=str(error))
            problem = "the registry could not write its message"
            self._switchboard.close(connection, CloseCode.INTERNAL_ERROR, problem)
        else:
            self._switchboard.send(connection, text)

    def _answer(self, ref: int, result: Result) -> None:
        waiting = self.answers.pop(ref, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(result)

    def _publish(self, doing: Publish) -> None:
        event = doing.event
        named = {} if event.node_id is None else {"node_id": event.node_id}
        numbered = {} if event.id is None else {"event_id": event.id}
        _EMIT[doing.level](event.event, **numbered, **named, **event.fields)
        self._tally.count(event.event, event.fields)
        self._chronicle.add(event)


_EMIT: dict[Level, Callable[..., None]] = {
    Level.DEBUG: _LOG.debug,
    Level.INFO: _LOG.info,
    Level.WARNING: _LOG.warning,
}


# A fleet's `TellStatus` as the message that a node reads (§3.5): monotonic moments become wall time.


def status_message(told: SendStatus, clock: Clock) -> NodeStatusMessage:
    """Write one status message, stamped with the present wall time."""
    return NodeStatusMessage(
        node_id=told.node_id,
        status=told.status.value,
        reason=told.reason,
        timestamp=round(clock.wall(), 3),
        previous_status=told.previous_status and told.previous_status.value,
        reason_code=told.reason_code.value,
        since=clock.wall_at(told.since),
        periodic=told.periodic,
        heartbeat_interval_seconds=told.heartbeat_interval_seconds,
        details=StatusDetails(
            checks=told.checks,
            healthy_beats=told.healthy_beats,
            beats_needed=told.beats_needed,
            in_flight_jobs=told.in_flight_jobs,
            drain_deadline=None if told.drain_deadline is None else clock.wall_at(told.drain_deadline),
            clears_when=told.clears_when,
        ),
    )


# Refused registrations, told once a minute for each address and code like every offence of a peer.
#
# Those that are left out are still counted, and still logged at debug level; they are kept nowhere: a
# flood must fill neither the log nor the store. Decides nothing about the registrations themselves.


_REFUSED = "node_register_refused"
_TOLD_OF_IT = ("node_register_received", _REFUSED)


def without_repeated_refusals(actions: Sequence[Action], log_limit: LogLimit) -> Sequence[Action]:
    """Return a list as it is, or, where it refuses what was refused just before, with less said of it."""
    for action in actions:
        if isinstance(action, LogEvent) and action.event == _REFUSED:
            origin = origin_of(str(action.fields.get("address") or "").rpartition(":")[0].strip("[]"))
            if log_limit.admits(_REFUSED, origin, kind=str(action.fields.get("code"))):
                return actions
            return [_hushed(one) for one in actions]
    return actions


def _hushed(action: Action) -> Action:
    if isinstance(action, LogEvent) and action.event in _TOLD_OF_IT:
        return replace(action, level=Level.DEBUG)
    return action
