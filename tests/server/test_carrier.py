import asyncio
import logging
from collections.abc import Sequence

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
from gpu_agent.registry.events import Saved, SaveFailed
from gpu_agent.server.carrier import DOCUMENT, WRITTEN_AT, Carrier
from gpu_agent.server.chronicle import Chronicle
from gpu_agent.server.clock import Clock
from gpu_agent.server.gateway import Limits, NodeConnection
from gpu_agent.server.switchboard import Switchboard
from gpu_agent.store.base import StoreError
from gpu_agent.store.memory import MemoryStore
from gpu_agent.wire.codes import NodeStatus, ReasonCode
from gpu_agent.wire.messages import NodeControl, NodeRegisterAck
from tests.server.harness import admit_all

CLOCK = Clock(monotonic=lambda: 100.0, wall=lambda: 1_000_000.0)


class FullStore(MemoryStore):
    def save(self, changes: Sequence[Change]) -> None:
        raise StoreError(f"no room for {len(changes)}")


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


def carrier(
    *, store: MemoryStore | None = None, board: HeardBoard | None = None, chronicle: Chronicle | None = None
) -> Carrier:
    return Carrier(store or MemoryStore(), chronicle or Chronicle(), board or HeardBoard(), clock=CLOCK)


async def test_a_save_is_kept_with_the_wall_time_of_its_writing() -> None:
    store = MemoryStore()
    changes = (Change(Kept.NODE, "node-1", {"a": 1}), Change(Kept.CLAIM, "job-1", None))
    assert carrier(store=store).carry_out(Save(7, changes)) == Saved(7)
    assert list(store.load()) == [Change(Kept.NODE, "node-1", {WRITTEN_AT: 1_000_000.0, DOCUMENT: {"a": 1}})]


async def test_a_save_that_fails_is_reported_with_its_reason() -> None:
    assert carrier(store=FullStore()).carry_out(Save(7, ())) == SaveFailed(7, "no room for 0")


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
    assert hands.carry_out(Send(3, NodeControl(command="refresh", reason="x" * 2**21))) is None
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


async def test_a_note_is_logged_at_its_level_and_joins_its_nodes_history(
    caplog: pytest.LogCaptureFixture,
) -> None:
    chronicle = Chronicle()
    hands = carrier(chronicle=chronicle)
    with caplog.at_level(logging.DEBUG, logger="gpu_agent"):
        hands.carry_out(Note("node_registered", {"node_id": "node-1", "gpu_count": 2}))
        hands.carry_out(Note("save_failed", {"save": 1}, Level.WARNING))
        hands.carry_out(Note("health_check", {"node_id": "node-1"}, Level.DEBUG))
    assert [(one.levelname, one.getMessage()) for one in caplog.records] == [
        ("INFO", "node_registered"),
        ("WARNING", "save_failed"),
        ("DEBUG", "health_check"),
    ]
    (event,) = chronicle.of("node-1")
    assert (event.at, event.event, event.fields) == (1_000_000.0, "node_registered", {"gpu_count": 2})
