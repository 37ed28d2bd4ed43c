import asyncio
import logging

import pytest

from gpu_agent.registry.actions import (
    Answer,
    Change,
    CloseConnection,
    Kept,
    Level,
    Note,
    Refusal,
    Result,
    Save,
    Send,
    TellStatus,
)
from gpu_agent.server.carrier import Carrier
from gpu_agent.server.chronicle import Chronicle
from gpu_agent.server.clock import Clock
from gpu_agent.server.gateway import NodeConnection
from gpu_agent.server.limits import Limits
from gpu_agent.server.switchboard import Switchboard
from gpu_agent.server.tally import Tally
from gpu_agent.store.base import RegistryEvent
from gpu_agent.wire.codes import NodeStatus, ReasonCode
from gpu_agent.wire.messages import NodeControl, NodeRegisterAck
from tests.server.harness import admit_all

CLOCK = Clock(monotonic=lambda: 100.0, wall=lambda: 1_000_000.0)


class HeardBoard(Switchboard):
    """A switchboard that writes down what it is asked to do."""

    def __init__(self) -> None:
        def arrived(connection: NodeConnection, payload: bytes) -> None:
            raise AssertionError((connection, payload))

        def lost(connection: NodeConnection) -> None:
            raise AssertionError(connection)

        super().__init__(Limits(), frame_arrived=arrived, connection_lost=lost, judge=admit_all)
        self.heard: list[tuple[object, ...]] = []

    def send(self, number: int, text: str) -> None:
        self.heard.append(("send", number, text))

    def identify(self, number: int, node_id: str) -> None:
        self.heard.append(("identify", number, node_id))

    def close(self, number: int, code: int, reason: str) -> None:
        self.heard.append(("close", number, code, reason))


def carrier(*, board: HeardBoard | None = None, chronicle: Chronicle | None = None) -> Carrier:
    return Carrier(chronicle or Chronicle(), board or HeardBoard(), clock=CLOCK, tally=Tally())


async def test_an_ack_lets_its_connection_stay() -> None:
    board = HeardBoard()
    hands = carrier(board=board)
    hands.carry_out(Send(3, NodeRegisterAck(node_id="node-1")))
    hands.carry_out(Send(3, NodeControl(command="refresh")))
    assert [one[:2] for one in board.heard] == [("send", 3), ("identify", 3), ("send", 3)]


async def test_a_status_is_written_with_wall_times() -> None:
    board = HeardBoard()
    carrier(board=board).carry_out(
        TellStatus(
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
    chronicle = Chronicle()
    hands = carrier(chronicle=chronicle)
    kept = Save(1, (Change(Kept.NODE, "node-1", {}),))
    notes = [
        Note("node_registered", {"node_id": "node-1", "gpu_count": 2}),
        Note("claim_lost", {"job_id": "j"}, Level.WARNING),
        Note("health_check", {"node_id": "node-1"}, Level.DEBUG),
        Note("dispatch_failed", {"job_id": "j"}),
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
