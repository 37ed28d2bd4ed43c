import json
import logging
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from websockets.asyncio.client import connect

from gpu_agent.registry.events import (
    ConnectionLost,
    Event,
    FaultReported,
    HeartbeatReceived,
    RegistrationReceived,
    UnregistrationReceived,
)
from gpu_agent.registry.tokens import Credential, CredentialKind
from gpu_agent.server.limits import Limits
from gpu_agent.server.message_handler import (
    HEARTBEATS_PER_MEASUREMENT,
    MALFORMED_IN_A_ROW,
    REFUSED_IN_A_ROW,
    MessageHandler,
)
from gpu_agent.server.node_connection import NodeConnection, NodeConnections
from gpu_agent.server.node_listener import NodeListener
from gpu_agent.server.service import RegistryService
from gpu_agent.server.websocket import Handshake, HandshakeRefusal
from gpu_agent.wire.codec import encode
from tests.server.harness import LOOPBACK, Node, admit_all, heartbeat, is_served, node, registration, until
from tests.server.malformed import MALFORMED
from tests.server.raw_peer import masked, raw

Authenticate = Callable[[NodeConnection, Handshake], HandshakeRefusal | None]


@pytest.fixture
def events() -> list[Event]:
    return []


@asynccontextmanager
async def received(
    events: list[Event], *, auth_on: bool = False, authenticate: Authenticate = admit_all
) -> AsyncIterator[tuple[Node, MessageHandler]]:
    """A node's connection to a message handler whose events are recorded."""
    connections = NodeConnections(Limits(close_timeout_seconds=0.2))
    handler = MessageHandler(
        events.append,
        send=lambda connection, refusal: connections.send(connection, encode(refusal)),
        auth_on=auth_on,
    )
    listener = NodeListener(
        connections,
        on_frame=handler.frame_arrived,
        on_lost=handler.connection_lost,
        authenticate=authenticate,
    )
    address = await listener.listen(LOOPBACK)
    await listener.admit()
    async with connect(f"ws://{address}/ws/node", proxy=None) as socket:
        yield Node(socket), handler
    await listener.stop()


async def test_each_message_becomes_its_event_with_the_connections_number(events: list[Event]) -> None:
    async with received(events) as (peer, handler):
        await peer.send(registration())
        await peer.send(heartbeat("node-1"))
        await peer.send({"type": "node_error", "code": "GPU_LOST"})
        await peer.send({"type": "node_unregister", "node_id": "node-1"})
        await until(lambda: len(events) == 4, what="four events")
        assert handler.heartbeats == 1
    await until(lambda: len(events) == 5, what="the loss")
    kinds = [RegistrationReceived, HeartbeatReceived, FaultReported, UnregistrationReceived, ConnectionLost]
    assert [type(one) for one in events] == kinds
    assert {one.connection for one in events if isinstance(one, HeartbeatReceived | ConnectionLost)} == {1}


async def test_every_registration_carries_a_generated_id_and_its_address(events: list[Event]) -> None:
    async with received(events) as (peer, _):
        for _ in range(2):
            await peer.send(registration())
        await until(lambda: len(events) == 2, what="two registrations")
    arrived = [one for one in events if isinstance(one, RegistrationReceived)]
    assert all(re.fullmatch(r"node-[0-9A-F]{8}", one.fresh_id) for one in arrived)
    assert arrived[0].fresh_id != arrived[1].fresh_id
    assert (arrived[0].address or "").startswith("127.0.0.1:")


async def test_with_auth_on_a_registration_carries_its_credential_and_a_new_token(
    events: list[Event],
) -> None:
    presented = Credential(CredentialKind.JOIN, "0123abcd")

    def judge(connection: NodeConnection, _handshake: Handshake) -> None:
        connection.credential = presented

    async with received(events, auth_on=True, authenticate=judge) as (peer, _):
        for _ in range(2):
            await peer.send(registration())
        await until(lambda: len(events) == 2, what="two registrations")
    arrived = [one for one in events if isinstance(one, RegistrationReceived)]
    assert [one.credential for one in arrived] == [presented, presented]
    first, second = (one.fresh_token for one in arrived)
    assert first is not None
    assert second is not None
    assert first.text != second.text


async def test_with_auth_off_a_registration_carries_neither(events: list[Event]) -> None:
    async with received(events) as (peer, _):
        await peer.send(registration())
        await until(lambda: events, what="a registration")
    (arrived,) = [one for one in events if isinstance(one, RegistrationReceived)]
    assert (arrived.credential, arrived.fresh_token) == (None, None)


async def test_the_round_trip_is_measured_at_registration_and_every_sixteenth_heartbeat(
    events: list[Event],
) -> None:
    async with received(events) as (peer, _):
        await peer.send(registration())
        for _ in range(2 * HEARTBEATS_PER_MEASUREMENT):
            await peer.send(heartbeat("node-1"))
        await until(lambda: len(events) == 1 + 2 * HEARTBEATS_PER_MEASUREMENT, what="all of them")
    measured = [one.round_trip_seconds is not None for one in events if isinstance(one, HeartbeatReceived)]
    assert measured == [*[False] * (HEARTBEATS_PER_MEASUREMENT - 1), True] * 2
    (registered,) = [one for one in events if isinstance(one, RegistrationReceived)]
    assert registered.round_trip_seconds is not None


async def test_a_malformed_frame_causes_no_event_and_is_answered_with_every_error(
    events: list[Event],
) -> None:
    async with received(events) as (peer, _):
        await peer.send({"type": "node_register", "hardware": {"cpu_cores": "x"}})
        answer = await peer.receive()
        assert events == []
    assert [error["path"] for error in answer["details"]["errors"]] == [
        "$.version",
        "$.hardware.cpu_cores",
        "$.hardware.memory_gb",
    ]
    assert "see *The node protocol* in the documentation" in answer["message"]
    assert json.dumps(answer["node_id"]) == "null"


async def test_r05_a_registration_of_another_major_version_is_answered_with_the_supported_schemas(
    events: list[Event],
) -> None:
    async with received(events) as (peer, _):
        await peer.send(registration(capability_schema_version="9.9", hardware={"accelerators": 8}))
        refusal = await peer.receive()
        assert (refusal["code"], refusal["details"]) == (
            "INVALID_CAPABILITY_SCHEMA",
            {"supported": ["1.0", "1.1"]},
        )


async def test_a_registration_that_cannot_be_read_is_logged_as_refused_with_its_code(
    events: list[Event], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="gpu_agent"):
        async with received(events) as (peer, _):
            await peer.send({"type": "node_register"})
            await peer.send(registration(capability_schema_version="9.9", hardware={"accelerators": 8}))
            await peer.send({"type": "node_heartbeat"})
            for _ in range(3):
                await peer.receive()
    logged = [(record.getMessage(), record.__dict__["fields"]) for record in caplog.records]
    assert [(event, fields["code"]) for event, fields in logged] == [
        ("node_register_refused", "INVALID_MESSAGE"),
        ("node_register_refused", "INVALID_CAPABILITY_SCHEMA"),
        ("frame_malformed", "INVALID_MESSAGE"),
    ]
    assert logged[0][1]["problems"] == [
        "$.version: required, but missing",
        "$.hardware: required, but missing",
    ]


async def test_messages_beyond_the_quota_are_rate_limited_and_then_end_the_connection(
    events: list[Event],
) -> None:
    async with received(events) as (peer, _):
        fault = {"type": "node_error", "code": "GPU_LOST"}
        for _ in range(Limits().message_burst + REFUSED_IN_A_ROW):
            await peer.send(fault)
        answers = [await peer.receive() for _ in range(REFUSED_IN_A_ROW)]
        assert {one["code"] for one in answers} == {"RATE_LIMITED"}
        assert all(0 < one["retry_after_seconds"] <= 1 for one in answers)
        assert (await peer.closed())[0] == 1008
    heard = [one for one in events if isinstance(one, FaultReported)]
    assert Limits().message_burst <= len(heard) <= Limits().message_burst + 2


async def test_unreadable_frames_count_against_the_quota_even_between_heartbeats(events: list[Event]) -> None:
    async with received(events) as (peer, _):
        for _ in range(Limits().message_burst + REFUSED_IN_A_ROW):
            await peer.socket.send("nonsense")
            await peer.send(heartbeat("node-1"))
        codes = [(await peer.receive())["code"] for _ in range(Limits().message_burst + REFUSED_IN_A_ROW)]
        assert codes[: Limits().message_burst] == ["INVALID_MESSAGE"] * Limits().message_burst
        assert set(codes[Limits().message_burst + 2 :]) == {"RATE_LIMITED"}
        assert (await peer.closed())[0] == 1008


async def test_a_heartbeat_of_another_node_is_logged_once(
    events: list[Event], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="gpu_agent.server.node_connection")
    async with received(events) as (peer, _):
        for _ in range(5):
            await peer.send(heartbeat("another-node"))
        await until(lambda: len(events) == 5, what="five heartbeats")
    assert [record.message for record in caplog.records] == ["foreign_heartbeat", "violations_suppressed"]


def test_at_least_thirty_kinds_of_malformed_frames_are_tried() -> None:
    assert len({name for name, _, _ in MALFORMED}) >= 30


@pytest.mark.parametrize("case", MALFORMED, ids=[case[0] for case in MALFORMED])
async def test_a_malformed_frame_is_answered_with_its_path_and_the_socket_stays_open(
    service: RegistryService, other: Node, case: tuple[str, str | bytes, str]
) -> None:
    _, frame, path = case
    async with node(service) as broken:
        await broken.socket.send(frame, text=True)
        answer = await broken.receive()
        assert (answer["type"], answer["code"]) == ("node_error", "INVALID_MESSAGE")
        paths = [error["path"] for error in answer["details"]["errors"]]
        assert any(one == path or (path == "$" and one.startswith("$")) for one in paths), paths
        assert (await broken.register())["status"] == "registering"
    await is_served(other)


async def test_too_many_malformed_frames_in_a_row_close_with_1008(
    service: RegistryService, other: Node
) -> None:
    async with node(service) as broken:
        for _ in range(MALFORMED_IN_A_ROW):
            await broken.socket.send("nonsense")
        for _ in range(MALFORMED_IN_A_ROW):
            assert (await broken.receive())["code"] == "INVALID_MESSAGE"
        assert (await broken.closed())[0] == 1008
    await is_served(other)


async def test_a_readable_frame_between_malformed_ones_keeps_the_socket_open(
    service: RegistryService,
) -> None:
    async with node(service) as clumsy:
        for _ in range(MALFORMED_IN_A_ROW - 1):
            await clumsy.socket.send("nonsense")
        await clumsy.register()
        for _ in range(MALFORMED_IN_A_ROW - 1):
            await clumsy.socket.send("nonsense")
        assert (await clumsy.register())["status"] == "registering"


@pytest.mark.parametrize(
    "payload", [b'{"type":"node_error","code":"\xff\xfe"}', b'{"type":"node_error","code":"\xe6\xbc', b"\xff"]
)
async def test_a_text_frame_that_is_no_utf8_closes_with_1007(
    service: RegistryService, payload: bytes
) -> None:
    async with raw(service, behind=masked(payload)) as peer:
        assert await peer.close_code() == 1007
