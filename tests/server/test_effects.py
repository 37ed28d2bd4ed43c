""""""

import asyncio
import json
import logging

import pytest

from gpu_agent.registry.actions import (
    Action,
    Answer,
    Change,
    CloseConnection,
    DocumentKind,
    Level,
    LogEvent,
    Refusal,
    Result,
    Save,
    Send,
    SendStatus,
)
from gpu_agent.registry.persistence import StoredDocument
from gpu_agent.server.clock import Clock
from gpu_agent.server.counters import EventCounters
from gpu_agent.server.effects import (
    DOCUMENT,
    WRITTEN_AT,
    Clerk,
    EffectsExecutor,
    Open,
    Publish,
    restored,
    status_message,
    unkept,
    without_repeated_refusals,
)
from gpu_agent.server.event_log import RegistryEventLog
from gpu_agent.server.limits import Limits
from gpu_agent.server.log_limit import LogLimit
from gpu_agent.server.node_connection import NodeConnection, NodeConnections
from gpu_agent.store.base import Batch, RegistryEvent
from gpu_agent.wire.codec import decode_from_registry, encode
from gpu_agent.wire.codes import NodeStatus, ReasonCode
from gpu_agent.wire.messages import Check, NodeControl, NodeError, NodeRegisterAck
from tests.server.harness import admit_all

CLOCK = Clock(monotonic=lambda: 100.0, wall=lambda: 1_000_000.0)


class HeardBoard(NodeConnections):
    """Connections that record what they are asked to do."""

    def __init__(self) -> None:
        def arrived(connection: NodeConnection, payload: bytes) -> None:
            raise AssertionError((connection, payload))

        def lost(connection: NodeConnection) -> None:
            raise AssertionError(connection)

        super().__init__(Limits(), frame_arrived=arrived, connection_lost=lost, authenticate=admit_all)
        self.heard: list[tuple[object, ...]] = []

    def send(self, number: int, text: str) -> None:
        self.heard.append(("send", number, text))

    def identify(self, number: int, node_id: str) -> None:
        self.heard.append(("identify", number, node_id))

    def close(self, number: int, code: int, reason: str) -> None:
        self.heard.append(("close", number, code, reason))


def carrier(*, board: HeardBoard | None = None, chronicle: RegistryEventLog | None = None) -> EffectsExecutor:
    return EffectsExecutor(
        chronicle or RegistryEventLog(), board or HeardBoard(), clock=CLOCK, counters=EventCounters()
    )


async def test_an_ack_lets_its_connection_stay() -> None:
    board = HeardBoard()
    hands = carrier(board=board)
    hands.carry_out(Send(3, NodeRegisterAck(node_id="node-1")))
    hands.carry_out(Send(3, NodeControl(command="refresh")))
    assert [one[:2] for one in board.heard] == [("send", 3), ("identify", 3), ("send", 3)]


async def test_a_status_is_written_with_wall_times() -> None:
    board = HeardBoard()
    carrier(board=board).carry_out(
        SendStatus(
            connection=4,
            node_id="node-1",
            status=NodeStatus.READY,
            reason_code=ReasonCode.HEALTH_CHECKS_PASSED,
            reason="well",
            since=99.0,
        )
    )
    ((_, number, text),) = board.heard
    assert number == 4
    assert '"since":999999.0' in str(text)


async def test_a_message_too_long_to_be_sent_costs_its_own_connection_only() -> None:
    board = HeardBoard()
    hands = carrier(board=board)
    hands.carry_out(Send(3, NodeControl(command="refresh", reason="x" * 2**21)))
    ((kind, number, code, _),) = board.heard
    assert (kind, number, code) == ("close", 3, 1011)


async def test_a_connection_is_closed_with_its_code() -> None:
    board = HeardBoard()
    carrier(board=board).carry_out(CloseConnection(5, 1001, "gone"))
    assert board.heard == [("close", 5, 1001, "gone")]


async def test_an_answer_reaches_who_waits_and_nobody_else() -> None:
    hands = carrier()
    waiting: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
    hands.answers[1] = waiting
    hands.carry_out(Answer(2, None))
    assert not waiting.done()
    hands.carry_out(Answer(1, Refusal("NO", "no")))
    assert await waiting == Refusal("NO", "no")
    assert hands.answers == {}


async def test_an_answer_for_somebody_who_left_is_dropped() -> None:
    hands = carrier()
    waiting: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
    hands.answers[1] = waiting
    waiting.cancel()
    hands.carry_out(Answer(1, None))
    assert hands.answers == {}


async def test_an_event_is_logged_at_its_level_with_its_number_and_joins_its_nodes_history(
    caplog: pytest.LogCaptureFixture,
) -> None:
    chronicle = RegistryEventLog()
    hands = carrier(chronicle=chronicle)
    kept = Save(1, (Change(DocumentKind.NODE, "node-1", {}),))
    notes = [
        LogEvent("node_registered", {"node_id": "node-1", "gpu_count": 2}),
        LogEvent("claim_lost", {"job_id": "j"}, Level.WARNING),
        LogEvent("health_check", {"node_id": "node-1"}, Level.DEBUG),
        LogEvent("dispatch_failed", {"job_id": "j"}),
    ]
    with caplog.at_level(logging.DEBUG, logger="gpu_agent"):
        for doing in hands.make_ready([kept, *notes]).doings:
            hands.carry_out(doing)
    assert [
        (one.levelname, one.getMessage(), one.__dict__["fields"].get("event_id")) for one in caplog.records
    ] == [
        ("INFO", "node_registered", 1),
        ("WARNING", "claim_lost", 2),
        ("DEBUG", "health_check", None),
        ("INFO", "dispatch_failed", None),
    ]
    (event,) = chronicle.of("node-1")
    assert event == RegistryEvent(1_000_000.0, "node_registered", "node-1", {"gpu_count": 2}, 1)


def clerk() -> Clerk:
    return Clerk(RegistryEventLog(), CLOCK)


def test_a_save_and_the_events_of_its_list_are_kept_together_each_document_with_its_time() -> None:
    changes = (Change(DocumentKind.NODE, "node-1", {"a": 1}), Change(DocumentKind.CLAIM, "job-1", None))
    dated = [Change(DocumentKind.NODE, "node-1", {WRITTEN_AT: 1_000_000.0, DOCUMENT: {"a": 1}}), changes[1]]
    event = RegistryEvent(1_000_000.0, "job_assigned", "node-1", {"job_id": "job-1"}, 1)
    note = LogEvent("job_assigned", {"job_id": "job-1", "node_id": "node-1"})
    ready = clerk().make_ready([Save(7, changes), note, Answer(1, None)])
    assert (ready.save, ready.batch) == (7, Batch(dated, [event]))
    assert ready.doings == [Open(dated), Publish(event, Level.INFO), Answer(1, None)]


def test_a_list_that_only_tells_keeps_nothing() -> None:
    actions: list[Action] = [
        LogEvent("health_check", {}, Level.DEBUG),
        LogEvent("dispatch_failed", {}),
        Answer(1, None),
    ]
    ready = clerk().make_ready(actions)
    assert (ready.batch, ready.save, ready.doings) == (None, None, actions)


def test_events_without_a_save_are_kept_too_and_numbers_grow() -> None:
    subject = clerk()
    first = subject.make_ready([LogEvent("one"), LogEvent("two")]).batch
    second = subject.make_ready([LogEvent("three")]).batch
    assert first is not None
    assert second is not None
    assert [one.id for one in (*first.events, *second.events)] == [1, 2, 3]


def test_what_could_not_be_kept_is_told_without_a_number() -> None:
    told = unkept(clerk().make_ready([LogEvent("one"), Answer(1, None)]).doings)
    assert told == [Publish(RegistryEvent(1_000_000.0, "one"), Level.INFO), Answer(1, None)]


def test_what_was_kept_comes_back_with_its_age_and_what_has_no_date_is_passed_over() -> None:
    kept = [
        Change(DocumentKind.NODE, "node-1", {WRITTEN_AT: 1_000_000.0, DOCUMENT: {"a": 1}}),
        Change(DocumentKind.NODE, "node-2", {DOCUMENT: {"a": 1}}),
        Change(DocumentKind.NODE, "node-3", None),
    ]
    assert list(restored(kept, 1_000_060.0)) == [StoredDocument(DocumentKind.NODE, "node-1", {"a": 1}, 60.0)]


def told(**fields: object) -> SendStatus:
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
    message = status_message(told(drain_deadline=160.0), CLOCK)
    assert (message.timestamp, message.since) == (1_000_000.0, 999_990.0)
    assert message.details is not None
    assert message.details.drain_deadline == 1_000_060.0


def test_everything_that_is_told_reaches_the_wire() -> None:
    action = told(
        previous_status=NodeStatus.READY,
        periodic=True,
        heartbeat_interval_seconds=15.0,
        checks=(Check(name="gpus", ok=True, detail="1 of 1"),),
        healthy_beats=2,
        beats_needed=1,
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
    document = json.loads(encode(status_message(told(), CLOCK)))
    assert "previous_status" not in document
    assert "drain_deadline" not in document["details"]


def refusal(*, code: str = "GPU_REQUIRED", address: str = "10.0.0.1:4000") -> list[Action]:
    return [
        LogEvent("node_register_received", {"gpu_count": 0, "address": address}),
        LogEvent("node_register_refused", {"node_id": None, "code": code, "address": address}, Level.WARNING),
        Send(1, NodeError(code=code)),
    ]


def levels(actions: list[Action]) -> list[Level]:
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
        assert isinstance(less[-1], Send)  # whoever asked is answered all the same
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


async def test_a_registration_that_is_accepted_is_always_told() -> None:
    log_limit = LogLimit()
    accepted: list[Action] = [
        LogEvent("node_register_received", {"address": "10.0.0.1:1"}),
        LogEvent("node_registered", {"node_id": "node-1"}),
    ]
    for _ in range(3):
        assert without_repeated_refusals(accepted, log_limit) is accepted
    log_limit.stop()
