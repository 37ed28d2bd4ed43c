"""Limits, close codes and malformed frames, on real sockets against the true registry."""

import asyncio
import contextlib
import gc
import json
import socket
import struct
import weakref
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from gpu_agent.server.limits import Limits
from gpu_agent.server.reception import MALFORMED_IN_A_ROW
from gpu_agent.server.service import RegistryService
from tests.server.frames import masked
from tests.server.harness import QUICK, Node, beat, node, registration, running, until, url

MIB = 1024 * 1024
HANDSHAKE = (
    b"GET /ws/node HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def _without(message: dict[str, Any], *path: str | int) -> str:
    copy = json.loads(json.dumps(message))
    place = copy
    for step in path[:-1]:
        place = place[step]
    del place[path[-1]]
    return json.dumps(copy)


def _with(message: dict[str, Any], value: object, *path: str | int) -> str:
    copy = json.loads(json.dumps(message))
    place = copy
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return json.dumps(copy)


REGISTER, BEAT = registration(), beat("node-1")
GPU = ("hardware", "gpus", 0)
FLAG: object = True

MALFORMED: list[tuple[str, str | bytes, str]] = [
    ("empty", "", "$"),
    ("blank", "  \n ", "$"),
    ("not JSON", "hello", "$"),
    ("half an object", '{"type":"node_register"', "$"),
    ("two objects", "{}{}", "$"),
    ("single quotes", "{'type':'node_heartbeat'}", "$"),
    ("a comment", '{"type":"node_heartbeat"/*x*/}', "$"),
    ("a trailing comma", '{"type":"node_heartbeat",}', "$"),
    ("null", "null", "$"),
    ("a number", "17", "$"),
    ("a string", '"node_register"', "$"),
    ("a list", "[]", "$"),
    ("a list of messages", json.dumps([REGISTER]), "$"),
    ("no type", "{}", "$.type"),
    ("an unknown type", '{"type":"job_assign"}', "$.type"),
    ("a type that is no string", '{"type":1}', "$.type"),
    ("a type in capitals", '{"type":"NODE_REGISTER"}', "$.type"),
    ("a message of the other direction", '{"type":"node_register_ack","node_id":"a"}', "$.type"),
    ("no version", _without(REGISTER, "version"), "$.version"),
    ("no hardware", _without(REGISTER, "hardware"), "$.hardware"),
    ("hardware is a list", _with(REGISTER, [], "hardware"), "$.hardware"),
    ("no cpu_cores", _without(REGISTER, "hardware", "cpu_cores"), "$.hardware.cpu_cores"),
    ("cpu_cores as text", _with(REGISTER, "8", "hardware", "cpu_cores"), "$.hardware.cpu_cores"),
    ("cpu_cores below zero", _with(REGISTER, -8, "hardware", "cpu_cores"), "$.hardware.cpu_cores"),
    ("cpu_cores beyond any machine", _with(REGISTER, 10**400, "hardware", "cpu_cores"), "$"),
    (
        "memory as a flag",
        _with(REGISTER, json.loads("true"), "hardware", "memory_gb"),
        "$.hardware.memory_gb",
    ),
    ("gpus is an object", _with(REGISTER, {}, "hardware", "gpus"), "$.hardware.gpus"),
    ("a GPU is a string", _with(REGISTER, "L4", *GPU), "$.hardware.gpus[0]"),
    ("a GPU without a name", _without(REGISTER, *GPU, "name"), "$.hardware.gpus[0].name"),
    ("GPU memory as text", _with(REGISTER, "24GB", *GPU, "memory_gb"), "$.hardware.gpus[0].memory_gb"),
    ("a node id with a slash", _with(REGISTER, "a/b", "node_id"), "$.node_id"),
    ("a node id that is too long", _with(REGISTER, "a" * 129, "node_id"), "$.node_id"),
    ("a node id that is a number", _with(REGISTER, 7, "node_id"), "$.node_id"),
    (
        "a model without an id",
        _without(REGISTER, "installed_models", 0, "model_id"),
        "$.installed_models[0].model_id",
    ),
    ("models as a string", _with(REGISTER, "m", "installed_models"), "$.installed_models"),
    ("features as a list", _with(REGISTER, ["asr"], "features_supported"), "$.features_supported"),
    ("a label that is a number", _with(REGISTER, {"zone": 1}, "labels"), "$.labels.zone"),
    ("NaN", _with(REGISTER, float("nan"), "hardware", "cpu_cores"), "$"),
    ("Infinity in a field nobody knows", _with(REGISTER, float("inf"), "later"), "$"),
    ("a beat without usage", _without(BEAT, "resource_usage"), "$.resource_usage"),
    ("a beat without an id", _without(BEAT, "node_id"), "$.node_id"),
    ("a beat with an empty id", _with(BEAT, "", "node_id"), "$.node_id"),
    (
        "a beat with cpu as text",
        _with(BEAT, "10", "resource_usage", "cpu_percent"),
        "$.resource_usage.cpu_percent",
    ),
    ("a beat whose time is text", _with(BEAT, "now", "timestamp"), "$.timestamp"),
    ("a beat with -Infinity", _with(BEAT, float("-inf"), "resource_usage", "cpu_percent"), "$"),
    ("figures without a uuid", _with(BEAT, [{}], "gpus"), "$.gpus[0].uuid"),
    ("a goodbye without an id", '{"type":"node_unregister"}', "$.node_id"),
    ("a fault without a code", '{"type":"node_error"}', "$.code"),
    ("deep nesting", '{"type":"node_heartbeat","x":' + "[" * 50_000 + "]" * 50_000 + "}", "$"),
    ("deep nesting of objects", '{"a":' * 5_000 + "1" + "}" * 5_000, "$"),
    ("a lone surrogate", '{"type":"node_error","code":"\\ud800"}', "$"),
    ("a lone surrogate as a key", '{"type":"node_error","\\udfff":1}', "$"),
    ("invalid UTF-8", b'{"type":"node_error","code":"\xff\xfe"}', "$"),
    ("cut off inside a character", b'{"type":"node_error","code":"\xe6\xbc', "$"),
    ("a byte order mark", b"\xef\xbb\xbf{}", "$"),
    ("a control character", '{"type":"node_error","code":"\x01"}', "$"),
]


@pytest.fixture
async def service() -> AsyncIterator[RegistryService]:
    async with running() as service:
        yield service


@pytest.fixture
async def other(service: RegistryService) -> AsyncIterator[Node]:
    """A node that is well and must stay served, whatever its neighbour sends."""
    async with node(service) as other:
        await other.register()
        yield other


async def _is_served(other: Node) -> None:
    node_id = other.node_id
    assert (await other.register(node_id=node_id))["node_id"] == node_id


def test_at_least_thirty_kinds_of_malformed_frames_are_tried() -> None:
    assert len({name for name, _, _ in MALFORMED}) >= 30


@pytest.mark.parametrize("case", MALFORMED, ids=[case[0] for case in MALFORMED])
async def test_a_malformed_frame_is_told_its_path_and_the_socket_stays_open(
    service: RegistryService, other: Node, case: tuple[str, str | bytes, str]
) -> None:
    _, frame, path = case
    async with node(service) as broken:
        await broken.socket.send(frame, text=True)
        told = await broken.hear()
        assert (told["type"], told["code"]) == ("node_error", "INVALID_MESSAGE")
        paths = [error["path"] for error in told["details"]["errors"]]
        assert any(one == path or (path == "$" and one.startswith("$")) for one in paths), paths
        assert (await broken.register())["status"] == "registering"
    await _is_served(other)


async def test_a_text_frame_over_one_mebibyte_closes_with_1009(service: RegistryService, other: Node) -> None:
    async with node(service) as broken:
        with contextlib.suppress(ConnectionClosed):
            await broken.socket.send("x" * (2 * MIB))
        assert (await broken.closed())[0] == 1009
    await _is_served(other)


async def test_fragments_that_add_up_to_over_one_mebibyte_close_with_1009(service: RegistryService) -> None:
    async with node(service) as broken:
        with contextlib.suppress(ConnectionClosed):
            await broken.socket.send(["x" * (MIB // 2)] * 3)
        assert (await broken.closed())[0] == 1009


async def test_a_binary_frame_closes_with_1003(service: RegistryService, other: Node) -> None:
    async with node(service) as broken:
        await broken.socket.send(json.dumps(REGISTER).encode())
        assert (await broken.closed())[0] == 1003
    await _is_served(other)


async def test_a_frame_of_exactly_one_mebibyte_is_read(service: RegistryService) -> None:
    frame = json.dumps(registration(padding=""))
    async with node(service) as large:
        await large.socket.send(frame.replace('"padding": ""', f'"padding": "{"x" * (MIB - len(frame))}"'))
        assert (await large.hear())["type"] == "node_register_ack"


async def test_no_registration_in_time_closes_with_1008() -> None:
    limits = Limits(registration_timeout_seconds=0.2, close_timeout_seconds=0.3)
    async with running(limits=limits) as service, node(service) as silent, node(service) as refused:
        await refused.say(registration(hardware={"cpu_cores": 1, "memory_gb": 1, "gpus": []}))
        assert (await refused.hear())["code"] == "GPU_REQUIRED"
        assert (await silent.closed())[0] == 1008
        assert (await refused.closed())[0] == 1008


async def test_a_registered_node_outlives_the_registration_timeout() -> None:
    limits = Limits(registration_timeout_seconds=0.1, close_timeout_seconds=0.3)
    async with running(limits=limits) as service, node(service) as silent, node(service) as settled:
        await settled.register()
        await silent.closed()
        await _is_served(settled)


async def test_a_peer_that_never_finishes_its_handshake_is_dropped() -> None:
    async with running(limits=Limits(registration_timeout_seconds=0.1)) as service:
        address = service.node_address
        reader, writer = await asyncio.open_connection(address.host, address.port)
        writer.write(b"GET /ws/node HTTP/1.1\r\n")
        with contextlib.suppress(ConnectionError):
            assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()
        await until(lambda: service.size.connections == 0, what="the connection dropped")


async def test_too_many_malformed_frames_in_a_row_close_with_1008(
    service: RegistryService, other: Node
) -> None:
    async with node(service) as broken:
        for _ in range(MALFORMED_IN_A_ROW):
            await broken.socket.send("nonsense")
        for _ in range(MALFORMED_IN_A_ROW):
            assert (await broken.hear())["code"] == "INVALID_MESSAGE"
        assert (await broken.closed())[0] == 1008
    await _is_served(other)


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


async def test_a_peer_that_reads_nothing_is_cut_off_and_others_are_served(other: Node) -> None:
    limits = Limits(max_unsent_bytes=2048, close_timeout_seconds=0.3)
    async with running(limits=limits) as service, raw(service) as deaf:
        assert isinstance(deaf.writer.transport, asyncio.Transport)
        deaf.writer.transport.pause_reading()
        flood = masked(b"nonsense") + masked(json.dumps(REGISTER).encode())
        with contextlib.suppress(ConnectionError):
            while service.size.connections:
                deaf.writer.write(flood * 50)
                await deaf.writer.drain()
                await asyncio.sleep(0)
        assert service.size.connections == 0
    await _is_served(other)


async def test_a_handshake_that_dribbles_is_cut_off_at_its_deadline(other: Node) -> None:
    limits = Limits(handshake_timeout_seconds=0.3, close_timeout_seconds=0.3)
    async with running(limits=limits) as service:
        _, writer = await asyncio.open_connection(*_host_and_port(service))
        began = asyncio.get_running_loop().time()
        with contextlib.suppress(ConnectionError):
            for byte in b"GET /ws/node HTTP/1.1\r\nX-Padding: " + b"x" * 1000:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0.02)
        assert 0.25 < asyncio.get_running_loop().time() - began < 2
        assert service.size.connections == 0
        writer.close()
    await _is_served(other)


async def test_a_peer_that_came_in_has_until_the_registration_timeout(service: RegistryService) -> None:
    limits = Limits(handshake_timeout_seconds=0.1, registration_timeout_seconds=0.4)
    async with running(limits=limits) as patient, node(patient) as slow:
        await asyncio.sleep(0.2)
        assert (await slow.register())["type"] == "node_register_ack"
        await asyncio.sleep(0.4)
        await slow.become_ready(node_id=slow.node_id)
    assert service.size.connections == 0


@pytest.mark.parametrize(
    "frame",
    [
        masked(b"", opcode=9),
        masked(b"", opcode=10),
        masked(b"", opcode=0, fin=False),
        masked(b"x" * 125, opcode=9),
    ],
    ids=["pings", "pongs", "empty fragments", "long pings"],
)
@pytest.mark.parametrize("registers", [True, False], ids=["a node", "a stranger"])
async def test_a_flood_of_tiny_frames_is_cut_off_with_1008(
    frame: bytes, *, registers: bool, other: Node
) -> None:
    async with running() as service, raw(service) as flood:
        if registers:
            flood.writer.write(masked(json.dumps(REGISTER).encode()))
            await flood.text()
        opening = masked(b"x", fin=False) if frame[0] == 0 else b""
        flood.writer.write(opening + frame * (Limits().frames_at_once + 500))
        heard = await asyncio.wait_for(flood.reader.read(), 5)
        assert heard.rpartition(b"\x88")[2][1:3] == (1008).to_bytes(2, "big")
    await _is_served(other)


async def test_a_flood_of_beats_is_cut_off_with_1008(service: RegistryService, other: Node) -> None:
    async with node(service) as eager:
        await eager.register()
        text = json.dumps(beat(eager.node_id))
        with contextlib.suppress(ConnectionClosed):
            for _ in range(Limits().frames_at_once * 2):
                await eager.socket.send(text)
        assert (await eager.closed())[0] == 1008
    await _is_served(other)


async def test_a_node_may_beat_far_more_often_than_it_is_told(service: RegistryService) -> None:
    async with node(service) as lively:
        await lively.register()
        for _ in range(200):
            await lively.beat()
        await lively.hear_type("node_status", status="ready")


async def test_an_ack_that_comes_after_the_end_does_not_keep_the_connection() -> None:
    """The store may answer when the peer has long broken a rule and been told so."""
    async with running(limits=Limits(close_timeout_seconds=0.2)) as service, raw(service) as broken:
        await until(lambda: service.size.connections == 1, what="the connection")
        (connection,) = service._switchboard._connections.values()
        broken.writer.write(b"\x81\x02{}")
        assert await broken.close_code() == 1002
        connection.identify("node-1")
        await until(lambda: service.size.connections == 0, what="the connection dropped")


async def test_compression_is_not_negotiated(service: RegistryService) -> None:
    async with connect(url(service), proxy=None) as socket:
        assert socket.response is not None
        assert "Sec-WebSocket-Extensions" not in socket.response.headers


async def test_a_peer_that_is_gone_before_it_is_told_of_its_end_breaks_nothing(
    service: RegistryService,
) -> None:
    loop, turns = asyncio.get_running_loop(), service._switchboard.turns
    problems: list[object] = []
    loop.set_exception_handler(lambda _, context: problems.append(context))
    with socket.socket() as peer:
        peer.settimeout(0)
        await loop.sock_connect(peer, _host_and_port(service))
        await loop.sock_sendall(peer, HANDSHAKE)
        assert (await loop.sock_recv(peer, 4096)).startswith(b"HTTP/1.1 101")
        (connection,) = service._switchboard._connections.values()

        def hang_up_once_read() -> None:
            if connection._waiting:
                peer.close()
            else:
                turns.wait(hang_up_once_read, urgent=True)

        turns.wait(hang_up_once_read, urgent=True)
        await loop.sock_sendall(peer, b"\x81\x02{}")
        await until(lambda: service.size.connections == 0, what="the connection gone")
    assert problems == []


async def test_a_ping_is_answered(service: RegistryService) -> None:
    async with node(service) as polite:
        await asyncio.wait_for(await polite.socket.ping(), 5)


@pytest.mark.parametrize("reason", ["r" * 300, "ö" * 300], ids=["long", "long and odd"])
async def test_a_long_reason_still_closes_with_its_code(service: RegistryService, reason: str) -> None:
    async with node(service) as leaving:
        await leaving.register()
        await leaving.say({"type": "node_unregister", "node_id": leaving.node_id, "reason": reason})
        code, said = await leaving.closed()
        assert code == 1001
        assert len(said.encode()) <= 123


async def test_a_peer_that_never_answers_a_close_is_dropped_after_the_close_timeout(
    service: RegistryService,
) -> None:
    async with raw(service) as stubborn:
        stubborn.writer.write(masked(b"\x00", opcode=2))
        assert (await stubborn.reader.readexactly(2))[0] == 0x88
        with contextlib.suppress(ConnectionError):
            await asyncio.wait_for(stubborn.reader.read(), 5)
        await until(lambda: service.size.connections == 0, what="the connection dropped")


async def test_a_frame_sent_right_behind_the_handshake_is_read(service: RegistryService) -> None:
    async with raw(service, behind=masked(json.dumps(REGISTER).encode())) as eager:
        assert json.loads(await eager.text())["type"] == "node_register_ack"


async def test_a_goodbye_in_the_same_read_as_the_close_frame_is_heard(service: RegistryService) -> None:
    async with raw(service, behind=masked(json.dumps(REGISTER).encode())) as leaving:
        node_id = json.loads(await leaving.text())["node_id"]
        goodbye = {"type": "node_unregister", "node_id": node_id, "reason": "shutdown", "drain": False}
        leaving.writer.write(masked(json.dumps(goodbye).encode()) + masked(b"\x03\xe8", opcode=8))
        await until(lambda: _status(service, node_id) == "offline", what="the goodbye heard")


def _host_and_port(service: RegistryService) -> tuple[str, int]:
    return service.node_address.host, service.node_address.port


def _status(service: RegistryService, node_id: str) -> str | None:
    known = service.node(node_id)
    return None if known is None else known.status


async def test_frames_with_an_unmasked_payload_close_with_1002(service: RegistryService) -> None:
    async with raw(service) as odd:
        odd.writer.write(b"\x81\x02{}")
        assert await odd.close_code() == 1002


async def test_a_closed_connection_leaves_nothing_for_the_garbage_collector(service: RegistryService) -> None:
    """`serve` makes full collections rare: a fleet that reconnects must not fill the memory meanwhile."""
    gc.collect()
    gc.disable()
    try:
        async with node(service) as first:
            await first.register()
            (connection,) = service._switchboard._connections.values()
            left: list[weakref.ref[object]] = [
                weakref.ref(connection),
                weakref.ref(connection._socket),
                weakref.ref(connection._socket._protocol),
            ]
            del connection
        await until(lambda: service.size.connections == 0, what="the connection gone")
        await until(lambda: [one() for one in left] == [None, None, None], what="its objects gone")
    finally:
        gc.enable()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
async def test_however_the_bytes_arrive_every_frame_is_read_once_and_in_order(data: st.DataObject) -> None:
    """Whole frames take a shorter way than split ones: both ways, mixed at will, read the same."""
    sizes = data.draw(st.lists(st.sampled_from([0, 40, 100, 300, 5_000, 70_000]), min_size=1, max_size=6))
    padded = [
        json.dumps({"type": "nobody-knows", "mark": mark, "padding": "x" * size}).encode()
        for mark, size in enumerate(sizes)
    ]
    stream = b"".join(data.draw(st.sampled_from([masked, _fragmented, _pinged]))(one) for one in padded)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    heard: list[bytes] = []
    async with running(QUICK) as service:
        service._switchboard.frame_arrived = lambda _, payload: heard.append(payload)
        async with raw(service) as peer:
            for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
                peer.writer.write(stream[start:end])
                await peer.writer.drain()
                await asyncio.sleep(0)
            await until(lambda: len(heard) == len(padded), what="all frames read")
    assert heard == padded


@dataclass
class RawPeer:
    """A peer that writes bytes, not messages."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def text(self) -> bytes:
        opcode, payload = await self._frame()
        assert opcode == 1
        return payload

    async def close_code(self) -> int:
        opcode, payload = await self._frame()
        assert opcode == 8
        code: int = struct.unpack("!H", payload[:2])[0]
        return code

    async def _frame(self) -> tuple[int, bytes]:
        async with asyncio.timeout(5):
            head, length = await self.reader.readexactly(2)
            if length == 126:
                (length,) = struct.unpack("!H", await self.reader.readexactly(2))
            return head & 15, await self.reader.readexactly(length)


@contextlib.asynccontextmanager
async def raw(service: RegistryService, *, behind: bytes = b"") -> AsyncIterator[RawPeer]:
    address = service.node_address
    reader, writer = await asyncio.open_connection(address.host, address.port)
    writer.write(HANDSHAKE + behind)
    await reader.readuntil(b"\r\n\r\n")
    try:
        yield RawPeer(reader, writer)
    finally:
        writer.transport.abort()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


def _fragmented(payload: bytes) -> bytes:
    half = len(payload) // 2
    return masked(payload[:half], fin=False) + _pinged(b"", opcode=0, rest=payload[half:])


def _pinged(payload: bytes, *, opcode: int = 1, rest: bytes = b"") -> bytes:
    return masked(b"are you there", opcode=9) + masked(payload + rest, opcode=opcode)
