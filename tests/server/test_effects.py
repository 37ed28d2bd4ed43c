"""Effects are prepared for the store in order, and carried out on sockets, the log and the event log."""

import asyncio
import json
import logging
from dataclasses import replace

import pytest

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
    Send,
    SendStatus,
)
from gpu_agent.registry.persistence import StoredDocument
from gpu_agent.server.counters import EventCounters
from gpu_agent.server.effects import (
    DOCUMENT,
    WRITTEN_AT,
    EffectsExecutor,
    Prepared,
    PublishEvent,
    UpdateHistories,
    merge,
    prepare,
    status_message,
    stored_documents,
    without_repeated_refusals,
)
from gpu_agent.server.event_log import RegistryEventLog
from gpu_agent.server.limits import Limits
from gpu_agent.server.log_limit import LogLimit
from gpu_agent.server.node_connection import NodeConnections
from gpu_agent.server.views import Clock
from gpu_agent.store.base import Batch
from gpu_agent.wire.api import RegistryEvent
from gpu_agent.wire.codec import decode_from_registry, encode
from gpu_agent.wire.codes import NodeStatus, ReasonCode
from gpu_agent.wire.messages import Check, NodeControl, NodeError, NodeRegisterAck

CLOCK = Clock(monotonic=lambda: 100.0, wall=lambda: 1_000_000.0)


class RecordingConnections(NodeConnections):
    """Writes down what it is asked to do."""

    def __init__(self) -> None:
        super().__init__(Limits())
        self.calls: list[tuple[object, ...]] = []

    def send(self, number: int, text: str, *, is_refusal: bool = False) -> None:  # noqa: ARG002
        self.calls.append(("send", number, text))

    def identify(self, number: int, node_id: str, *, session_epoch: int | None = None) -> None:  # noqa: ARG002
        self.calls.append(("identify", number, node_id))

    def close(self, number: int, code: int, reason: str) -> None:
        self.calls.append(("close", number, code, reason))


def executor(
    *,
    listener: RecordingConnections | None = None,
    event_log: RegistryEventLog | None = None,
) -> EffectsExecutor:
    return EffectsExecutor(
        event_log or RegistryEventLog(),
        listener or RecordingConnections(),
        clock=CLOCK,
        counters=EventCounters(),
    )


async def test_an_ack_lets_its_connection_stay() -> None:
    listener = RecordingConnections()
    subject = executor(listener=listener)
    subject.execute(Send(3, NodeRegisterAck(node_id="node-1")))
    subject.execute(Send(3, NodeControl(command="refresh")))
    assert [one[:2] for one in listener.calls] == [("send", 3), ("identify", 3), ("send", 3)]


async def test_a_status_is_written_with_wall_times() -> None:
    listener = RecordingConnections()
    executor(listener=listener).execute(
        SendStatus(
            connection=4,
            node_id="node-1",
            status=NodeStatus.READY,
            reason_code=ReasonCode.HEALTH_CHECKS_PASSED,
            reason="well",
            since=99.0,
        )
    )
    ((_, number, text),) = listener.calls
    assert number == 4
    assert '"since":999999.0' in str(text)


async def test_a_message_too_long_to_be_sent_costs_its_own_connection_only() -> None:
    listener = RecordingConnections()
    subject = executor(listener=listener)
    subject.execute(Send(3, NodeControl(command="refresh", reason="x" * 2**21)))
    ((kind, number, code, _),) = listener.calls
    assert (kind, number, code) == ("close", 3, 1011)


async def test_a_connection_is_closed_with_its_code() -> None:
    listener = RecordingConnections()
    executor(listener=listener).execute(CloseConnection(5, 1001, "gone"))
    assert listener.calls == [("close", 5, 1001, "gone")]


async def test_an_answer_resolves_its_request_and_no_other() -> None:
    subject = executor()
    other, answer = subject.expect_answer(1), subject.expect_answer(2)
    subject.execute(Answer(2, Refusal("NO", "no")))
    assert await answer == Refusal("NO", "no")
    assert not other.done()
    subject.execute(Answer(1, None))
    assert await other is None


async def test_an_answer_that_is_not_awaited_any_more_is_dropped() -> None:
    subject = executor()
    answer = subject.expect_answer(1)
    answer.cancel()
    subject.execute(Answer(1, None))
    subject.execute(Answer(1, None))
    assert answer.cancelled()


async def test_requests_that_wait_are_refused_when_the_registry_stops() -> None:
    subject, busy = executor(), Refusal("REGISTRY_BUSY", "the registry stops")
    answer = subject.expect_answer(1)
    subject.refuse_requests(busy)
    assert await answer is busy


async def test_an_event_is_logged_at_its_level_with_its_number_and_joins_its_nodes_history(
    caplog: pytest.LogCaptureFixture,
) -> None:
    event_log = RegistryEventLog()
    subject = executor(event_log=event_log)
    logged = (
        LogEvent("node_registered", {"node_id": "node-1", "gpu_count": 2}),
        LogEvent("claim_lost", {"job_id": "j"}, Level.WARNING),
        LogEvent("health_check", {"node_id": "node-1"}, Level.DEBUG),
        LogEvent("dispatch_failed", {"job_id": "j"}),
    )
    output = Output((Change(DocumentKind.NODE, "node-1", {}),), logged, 1)
    with caplog.at_level(logging.DEBUG, logger="gpu_agent"):
        for effect in subject.prepare(output).effects:
            subject.execute(effect)
    assert [
        (one.levelname, one.getMessage(), one.__dict__["fields"].get("event_id")) for one in caplog.records
    ] == [
        ("INFO", "node_registered", 1),
        ("WARNING", "claim_lost", 2),
        ("DEBUG", "health_check", None),
        ("INFO", "dispatch_failed", None),
    ]
    (event,) = event_log.history_of("node-1")
    assert event == RegistryEvent(1_000_000.0, "node_registered", "node-1", {"gpu_count": 2}, 1)


def prepared(*outputs: Output) -> list[Prepared]:
    event_log = RegistryEventLog()
    return [prepare(output, event_log=event_log, clock=CLOCK) for output in outputs]


def test_changes_and_events_are_stored_together_and_each_document_with_its_time() -> None:
    changes = (Change(DocumentKind.NODE, "node-1", {"a": 1}), Change(DocumentKind.CLAIM, "job-1", None))
    dated = [Change(DocumentKind.NODE, "node-1", {WRITTEN_AT: 1_000_000.0, DOCUMENT: {"a": 1}}), changes[1]]
    event = RegistryEvent(1_000_000.0, "job_assigned", "node-1", {"job_id": "job-1"}, 1)
    logged = LogEvent("job_assigned", {"job_id": "job-1", "node_id": "node-1"})
    (ready,) = prepared(Output(changes, (logged, Answer(1, None)), 7))
    assert ready.batch == Batch(dated, [event])
    assert ready.effects == [UpdateHistories(dated[:1]), PublishEvent(event, Level.INFO), Answer(1, None)]


def test_effects_alone_store_nothing() -> None:
    effects = (
        LogEvent("health_check", {}, Level.DEBUG),
        LogEvent("dispatch_failed", {}),
        Answer(1, None),
    )
    assert prepared(Output(effects=effects)) == [Prepared(None, list(effects))]


def test_events_without_changes_are_stored_too_and_their_numbers_grow() -> None:
    two, one = Output(effects=(LogEvent("one"), LogEvent("two"))), Output(effects=(LogEvent("three"),))
    batches = [ready.batch for ready in prepared(two, one)]
    assert [event.id for batch in batches if batch for event in batch.events] == [1, 2, 3]


def test_merged_outputs_keep_each_keys_newest_document_and_each_nodes_last_status() -> None:
    ready, degraded = draining(), replace(draining(), status=NodeStatus.DEGRADED)
    close = CloseConnection(1, 1001, "gone")
    first = Output((Change(DocumentKind.NODE, "n", {"a": 1}),), (LogEvent("one"), ready, close), 1)
    second = Output((Change(DocumentKind.NODE, "n", {"a": 2}),), (LogEvent("two"), degraded), 2)
    merged = merge(prepared(first, second))
    assert merged.batch is not None
    assert [change.document for change in merged.batch.changes] == [{WRITTEN_AT: 1e6, DOCUMENT: {"a": 2}}]
    assert [event.event for event in merged.batch.events] == ["one", "two"]
    events = [PublishEvent(event, Level.INFO) for event in merged.batch.events]
    histories = UpdateHistories(list(merged.batch.changes))
    assert merged.effects == [histories, events[0], close, events[1], degraded]


def test_a_stored_document_comes_back_with_its_age_and_one_without_a_date_is_passed_over() -> None:
    changes = [
        Change(DocumentKind.NODE, "node-1", {WRITTEN_AT: 1_000_000.0, DOCUMENT: {"a": 1}}),
        Change(DocumentKind.NODE, "node-2", {DOCUMENT: {"a": 1}}),
        Change(DocumentKind.NODE, "node-3", None),
    ]
    assert list(stored_documents(changes, 1_000_060.0)) == [
        StoredDocument(DocumentKind.NODE, "node-1", {"a": 1}, 60.0)
    ]


def draining(**fields: object) -> SendStatus:
    return SendStatus(
        connection=1,
        node_id="node-1",
        status=NodeStatus.DRAINING,
        reason_code=ReasonCode.DRAIN_REQUESTED,
        reason="an operator asked for it",
        since=90.0,
        **fields,  # type: ignore[arg-type]
    )


def test_monotonic_moments_become_unix_time() -> None:
    message = status_message(draining(drain_deadline=160.0), CLOCK)
    assert (message.timestamp, message.since) == (1_000_000.0, 999_990.0)
    assert message.details is not None
    assert message.details.drain_deadline == 1_000_060.0


def test_everything_that_is_told_reaches_the_wire() -> None:
    action = draining(
        previous_status=NodeStatus.READY,
        periodic=True,
        heartbeat_interval_seconds=15.0,
        checks=(Check(name="gpus", ok=True, detail="1 of 1"),),
        healthy_heartbeats=2,
        heartbeats_needed=1,
        in_flight_jobs=3,
        clears_when="its 3 jobs end",
    )
    text = encode(status_message(action, CLOCK))
    assert json.loads(text) == {
        "type": "node_status",
        "node_id": "node-1",
        "status": "draining",
        "reason": "an operator asked for it",
        "timestamp": 1_000_000.0,
        "previous_status": "ready",
        "reason_code": "drain_requested",
        "since": 999_990.0,
        "periodic": True,
        "heartbeat_interval_seconds": 15.0,
        "details": {
            "checks": [{"name": "gpus", "ok": True, "detail": "1 of 1"}],
            "healthy_beats": 2,
            "beats_needed": 1,
            "in_flight_jobs": 3,
            "clears_when": "its 3 jobs end",
        },
    }
    assert decode_from_registry(text) == status_message(action, CLOCK)


def test_what_is_unknown_is_left_out() -> None:
    document = json.loads(encode(status_message(draining(), CLOCK)))
    assert "previous_status" not in document
    assert "drain_deadline" not in document["details"]


def refusal(*, code: str = "GPU_REQUIRED", address: str = "10.0.0.1:4000") -> list[Effect]:
    return [
        LogEvent("node_register_received", {"gpu_count": 0, "address": address}),
        LogEvent("node_register_refused", {"node_id": None, "code": code, "address": address}, Level.WARNING),
        Send(1, NodeError(code=code)),
    ]


def levels(actions: list[Effect]) -> list[Level]:
    return [one.level for one in actions if isinstance(one, LogEvent)]


async def test_the_first_refusal_of_an_address_and_code_is_told_and_the_next_are_hushed() -> None:
    said: list[tuple[str, dict[str, object]]] = []

    def emit(event: str, /, **fields: object) -> None:
        said.append((event, fields))

    log_limit = LogLimit(emit, window_seconds=0.05)
    assert without_repeated_refusals(refusal(), log_limit) == refusal()
    for port in range(3):
        less = list(without_repeated_refusals(refusal(address=f"10.0.0.1:{port}"), log_limit))
        assert levels(less) == [Level.DEBUG, Level.DEBUG]
        assert isinstance(less[-1], Send)  # the answer is sent all the same
    other = refusal(code="NODE_ID_CONFLICT")
    assert without_repeated_refusals(other, log_limit) == other
    elsewhere = refusal(address="[2001:db8::1]:4000")
    assert without_repeated_refusals(elsewhere, log_limit) == elsewhere
    await asyncio.sleep(0.1)
    left_out = {
        "violation": "node_register_refused",
        "kind": "GPU_REQUIRED",
        "origin": "10.0.0.1",
        "count": 3,
    }
    assert said == [("violations_suppressed", left_out)]
    assert without_repeated_refusals(refusal(), log_limit) == refusal()
    log_limit.stop()


async def test_a_registration_that_is_accepted_is_always_draining() -> None:
    log_limit = LogLimit()
    accepted: list[Effect] = [
        LogEvent("node_register_received", {"address": "10.0.0.1:1"}),
        LogEvent("node_registered", {"node_id": "node-1"}),
    ]
    for _ in range(3):
        assert without_repeated_refusals(accepted, log_limit) is accepted
    log_limit.stop()


async def test_nothing_is_left_of_a_request_that_was_closed_before_its_answer() -> None:
    subject = executor()
    answer = subject.expect_answer(1)
    answer.cancel()
    await asyncio.wait({answer})
    assert subject._answers == {}
