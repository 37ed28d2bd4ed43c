"""Carries out the fleet's effects once the changes before them are stored: messages, log, events, answers.

An event above debug level is stored under a number of its own, in the same commit as the changes that it
belongs to. Decides nothing.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import assert_never

from gpu_agent.registry.actions import (
    Answer,
    Change,
    CloseConnection,
    DocumentKind,
    Effect,
    Level,
    LogEvent,
    Output,
    Refusal,
    Result,
    Send,
    SendStatus,
)
from gpu_agent.registry.persistence import PreparedNode, StoredDocument
from gpu_agent.runtime.logs import Logger
from gpu_agent.server.counters import EventCounters
from gpu_agent.server.event_log import RegistryEventLog
from gpu_agent.server.gateway.connection import GatewayConnections
from gpu_agent.server.log_limit import LogLimit, origin_of
from gpu_agent.server.node_connection import NodeConnections
from gpu_agent.server.views import Clock
from gpu_agent.store.base import RECENT_EVENTS, Batch
from gpu_agent.wire.api import RegistryEvent
from gpu_agent.wire.codec import FrameError, encode
from gpu_agent.wire.codes import CloseCode
from gpu_agent.wire.messages import NodeError, NodeRegisterAck, NodeStatusMessage, StatusDetails, WireModel

WRITTEN_AT = "written_at"
DOCUMENT = "document"

LOGGED_ONLY = frozenset({"dispatch_failed", "dispatch_candidate_excluded"})
"""Events of every failed dispatch: they are logged and counted, and belong to no node's history."""

_LOG = Logger("registry")


@dataclass(frozen=True, slots=True)
class PublishEvent:
    """Log an event that is stored, and hand it to the subscribers."""

    event: RegistryEvent
    level: Level


@dataclass(frozen=True, slots=True)
class UpdateHistories:
    """Begin and end nodes' histories as their documents are stored and deleted."""

    changes: Sequence[Change]


Executable = Effect | PublishEvent | UpdateHistories


@dataclass(frozen=True, slots=True)
class Prepared:
    """An output, sorted."""

    batch: Batch | None
    """What is stored first; None when that is nothing."""
    effects: Sequence[Executable]


class EffectsExecutor:
    """Carries out effects on sockets, the log, the event log and the futures of requests."""

    def __init__(
        self,
        event_log: RegistryEventLog,
        connections: NodeConnections | GatewayConnections,
        *,
        clock: Clock,
        counters: EventCounters,
    ) -> None:
        self._event_log = event_log
        self._connections = connections
        self._clock = clock
        self._counters = counters
        self._answers: dict[int, asyncio.Future[Result]] = {}
        """Of the requests that wait, by number."""

    def expect_answer(self, ref: int) -> asyncio.Future[Result]:
        """Return the future of a request's answer, which comes once the changes before it are stored."""
        answer = self._answers[ref] = asyncio.get_running_loop().create_future()
        answer.add_done_callback(lambda _: self._answers.pop(ref, None))  # a closed request gets no answer
        return answer

    def refuse_requests(self, refusal: Refusal) -> None:
        """Refuse all that wait, because the registry stops."""
        for ref in list(self._answers):
            self._answer(ref, refusal)

    def prepare(self, output: Output) -> Prepared:
        """Sort an output into what is stored, and what is carried out then."""
        for effect in output.effects:
            if isinstance(effect, LogEvent):
                self._counters.count(effect.event, effect.fields)
        effects = without_repeated_refusals(output.effects, self._connections.log_limit)
        if effects is not output.effects:
            output = replace(output, effects=tuple(effects))
        return prepare(output, event_log=self._event_log, clock=self._clock)

    def execute(self, effect: Executable) -> None:
        """Carry out one effect."""
        match effect:
            case Send(connection, message):
                self.send(connection, message)
            case SendStatus():
                self.send(effect.connection, status_message(effect, self._clock))
            case CloseConnection(connection, code, reason):
                self._connections.close(connection, code, reason)
            case Answer(ref, result):
                self._answer(ref, result)
            case LogEvent():
                _EMIT[effect.level](effect.event, **effect.fields)
            case PublishEvent():
                self._publish(effect)
            case UpdateHistories(changes):
                self._event_log.update_histories(changes)
            case _ as unreachable:
                assert_never(unreachable)

    def send(self, connection: int, message: WireModel) -> None:
        """Send; a message that is too long costs its own connection, never the effects after it."""
        try:
            text = encode(message)
        except FrameError as error:
            _LOG.error("message_not_sent", connection=connection, problem=str(error))
            problem = "the registry could not write its message"
            self._connections.close(connection, CloseCode.INTERNAL_ERROR, problem)
        else:
            self._connections.send(connection, text, is_refusal=isinstance(message, NodeError))
        if isinstance(message, NodeRegisterAck):
            self._connections.identify(connection, message.node_id, session_epoch=message.session_epoch)
        elif isinstance(message, NodeError):
            self._counters.refusals[message.code] += 1

    def _answer(self, ref: int, result: Result) -> None:
        """Set an answer; one that is not awaited any more is dropped."""
        answer = self._answers.pop(ref, None)
        if answer is not None and not answer.done():
            answer.set_result(result)

    def _publish(self, effect: PublishEvent) -> None:
        event = effect.event
        named = {} if event.node_id is None else {"node_id": event.node_id}
        _EMIT[effect.level](event.event, event_id=event.id, **named, **event.fields)
        self._event_log.publish(event)


_EMIT: dict[Level, Callable[..., None]] = {
    Level.DEBUG: _LOG.debug,
    Level.INFO: _LOG.info,
    Level.WARNING: _LOG.warning,
}


def prepare(output: Output, *, event_log: RegistryEventLog, clock: Clock) -> Prepared:
    """Number the events of an output, and date its documents by wall time; everything stays in order."""
    effects: list[Executable] = []
    events: list[RegistryEvent] = []
    now = round(clock.wall(), 3)
    changes = [
        one if one.document is None else Change(one.kind, one.key, {WRITTEN_AT: now, DOCUMENT: one.document})
        for one in output.changes
    ]
    nodes = [one for one in changes if one.kind is DocumentKind.NODE]
    if nodes:
        effects.append(UpdateHistories(nodes))
    for effect in output.effects:
        if (
            isinstance(effect, LogEvent)
            and effect.level is not Level.DEBUG
            and effect.event not in LOGGED_ONLY
        ):
            event = _numbered(effect, event_log.next_id(), at=now)
            events.append(event)
            effects.append(PublishEvent(event, effect.level))
        else:
            effects.append(effect)
    return Prepared(Batch(changes, events) if events or changes else None, effects)


def merge(waiting: Iterable[Prepared]) -> Prepared:
    """Merge what waits: the newest document of each key, the last status of each node, the last events."""
    changes: dict[object, Change] = {}
    events: list[RegistryEvent] = []
    effects: list[Executable] = []
    for one in waiting:
        effects += one.effects
        for change in one.batch.changes if one.batch is not None else ():
            changes.pop((change.kind, change.key), None)
            changes[change.kind, change.key] = change
        events += one.batch.events if one.batch is not None else ()
    events = events[-RECENT_EVENTS:]
    merged = list(changes.values())
    newest = _newest(effects, {event.id for event in events})
    return Prepared(Batch(merged, events), [UpdateHistories(merged), *newest])


def _newest(effects: Sequence[Executable], stored: set[int | None]) -> list[Executable]:
    seen: set[str] = set()
    newest: list[Executable] = []
    for effect in reversed(effects):
        match effect:
            case SendStatus(node_id=node_id):
                if node_id in seen:
                    continue
                seen.add(node_id)
            case PublishEvent(event):
                if event.id not in stored:
                    continue
            case LogEvent() | UpdateHistories():
                continue
            case _:
                pass
        newest.append(effect)
    return newest[::-1]


def stored_documents(changes: Iterable[Change], now: float) -> Iterator[StoredDocument]:
    """Unwrap the documents that a store has loaded; `now` is wall time, by which their age is known."""
    for change in changes:
        wrapped = change.document or {}
        document, written_at = wrapped.get(DOCUMENT), wrapped.get(WRITTEN_AT)
        if not isinstance(written_at, int | float):
            continue
        if isinstance(document, PreparedNode):
            yield StoredDocument(change.kind, change.key, {}, now - written_at, prepared=document)
        elif isinstance(document, Mapping):
            yield StoredDocument(change.kind, change.key, document, now - written_at)


def status_message(status: SendStatus, clock: Clock) -> NodeStatusMessage:
    """Write one status message, stamped with the present wall time."""
    return NodeStatusMessage(
        node_id=status.node_id,
        status=status.status.value,
        reason=status.reason,
        timestamp=round(clock.wall(), 3),
        previous_status=status.previous_status and status.previous_status.value,
        reason_code=status.reason_code.value,
        since=clock.wall_at(status.since),
        periodic=status.periodic,
        heartbeat_interval_seconds=status.heartbeat_interval_seconds,
        details=StatusDetails(
            checks=status.checks,
            healthy_beats=status.healthy_heartbeats,
            beats_needed=status.heartbeats_needed,
            in_flight_jobs=status.in_flight_jobs,
            drain_deadline=None if status.drain_deadline is None else clock.wall_at(status.drain_deadline),
            clears_when=status.clears_when,
        ),
    )


_REFUSED = "node_register_refused"
_QUIETED = ("node_register_received", _REFUSED)


def without_repeated_refusals(effects: Sequence[Effect], limit: LogLimit) -> Sequence[Effect]:
    """Return the effects; a refusal of a registration like one a moment ago is neither logged nor stored.

    A flood of refused registrations must fill neither the log nor the store. Each address has one line a
    minute for each code; the rest is counted, and logged at debug level.
    """
    for effect in effects:
        if isinstance(effect, LogEvent) and effect.event == _REFUSED:
            origin = origin_of(str(effect.fields.get("address") or "").rpartition(":")[0].strip("[]"))
            if limit.admits(_REFUSED, origin, kind=str(effect.fields.get("code"))):
                return effects
            return [_at_debug_level(one) for one in effects]
    return effects


def _at_debug_level(effect: Effect) -> Effect:
    if isinstance(effect, LogEvent) and effect.event in _QUIETED:
        return replace(effect, level=Level.DEBUG)
    return effect


def _numbered(event: LogEvent, number: int, *, at: float) -> RegistryEvent:
    fields = dict(event.fields)
    node_id = fields.pop("node_id", None)
    return RegistryEvent(at, event.event, node_id if isinstance(node_id, str) else None, fields, number)
