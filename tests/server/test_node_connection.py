"""Limits and close codes, on real sockets against the true registry."""

import asyncio
import contextlib
import gc
import json
import socket
import sys
import weakref
from collections.abc import Iterator
from typing import cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed

from gpu_agent.server.fair_queue import Work
from gpu_agent.server.limits import Limits
from gpu_agent.server.node_connection import round_trip_seconds, write_pieces
from gpu_agent.server.service import RegistryService
from tests.server.harness import QUICK, Node, heartbeat, is_served, node, registration, running, until
from tests.server.malformed import REGISTER
from tests.server.raw_peer import HANDSHAKE, fragmented, masked, pinged, raw
from tests.waiting import patience

MIB = 1024 * 1024


async def test_a_text_frame_over_one_mebibyte_closes_with_1009(service: RegistryService, other: Node) -> None:
    async with node(service) as broken:
        with contextlib.suppress(ConnectionClosed):
            await broken.socket.send("x" * (2 * MIB))
        assert (await broken.closed())[0] == 1009
    await is_served(other)


async def test_fragments_that_add_up_to_over_one_mebibyte_close_with_1009(service: RegistryService) -> None:
    async with node(service) as broken:
        with contextlib.suppress(ConnectionClosed):
            await broken.socket.send(["x" * (MIB // 2)] * 3)
        assert (await broken.closed())[0] == 1009


async def test_a_binary_frame_closes_with_1003(service: RegistryService, other: Node) -> None:
    async with node(service) as broken:
        await broken.socket.send(json.dumps(REGISTER).encode())
        assert (await broken.closed())[0] == 1003
    await is_served(other)


async def test_a_frame_of_exactly_one_mebibyte_is_read(service: RegistryService) -> None:
    frame = json.dumps(registration(padding=""))
    async with node(service) as large:
        await large.socket.send(frame.replace('"padding": ""', f'"padding": "{"x" * (MIB - len(frame))}"'))
        assert (await large.receive())["type"] == "node_register_ack"


async def test_no_registration_in_time_closes_with_1008() -> None:
    limits = Limits(registration_timeout_seconds=0.2, close_timeout_seconds=0.3)
    async with running(limits=limits) as service, node(service) as silent, node(service) as refused:
        await refused.send(registration(hardware={"cpu_cores": 1, "memory_gb": 1, "gpus": []}))
        assert (await refused.receive())["code"] == "GPU_REQUIRED"
        assert (await silent.closed())[0] == 1008
        assert (await refused.closed())[0] == 1008


async def test_a_registered_node_outlives_the_registration_timeout() -> None:
    limits = Limits(registration_timeout_seconds=0.1, close_timeout_seconds=0.3)
    async with running(limits=limits) as service, node(service) as silent, node(service) as settled:
        await settled.register()
        await silent.closed()
        await is_served(settled)


async def test_a_peer_that_never_finishes_its_handshake_is_dropped() -> None:
    async with running(limits=Limits(registration_timeout_seconds=0.1)) as service:
        address = service.node_address
        reader, writer = await asyncio.open_connection(address.host, address.port)
        writer.write(b"GET /ws/node HTTP/1.1\r\n")
        with contextlib.suppress(ConnectionError):
            assert await asyncio.wait_for(reader.read(), patience(5)) == b""
        writer.close()
        await until(lambda: service.size.connections == 0, what="the connection dropped")


async def test_a_peer_that_reads_nothing_is_disconnected_and_others_are_served(other: Node) -> None:
    limits = Limits(max_unsent_bytes=2048, close_timeout_seconds=0.3)
    async with running(limits=limits) as service, raw(service) as deaf:
        cast("asyncio.Transport", deaf.writer.transport).pause_reading()
        flood = masked(b"nonsense") + masked(json.dumps(REGISTER).encode())
        with contextlib.suppress(ConnectionError):
            while service.size.connections:
                deaf.writer.write(flood * 50)
                await deaf.writer.drain()
                await asyncio.sleep(0)
        assert service.size.connections == 0
    await is_served(other)


async def test_a_handshake_that_arrives_byte_by_byte_ends_at_its_timeout(other: Node) -> None:
    limits = Limits(handshake_timeout_seconds=0.3, close_timeout_seconds=0.3)
    async with running(limits=limits) as service:
        _, writer = await asyncio.open_connection(*_host_and_port(service))
        began = asyncio.get_running_loop().time()
        with contextlib.suppress(ConnectionError):
            for byte in b"GET /ws/node HTTP/1.1\r\nX-Padding: " + b"x" * 1000:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0.02)
        assert 0.25 < asyncio.get_running_loop().time() - began < patience(2)
        assert service.size.connections == 0
        writer.close()
    await is_served(other)


async def test_a_peer_after_its_handshake_has_until_the_registration_timeout(
    service: RegistryService,
) -> None:
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
async def test_a_flood_of_tiny_frames_closes_with_1008(frame: bytes, *, registers: bool, other: Node) -> None:
    async with running() as service, raw(service) as flood:
        if registers:
            flood.writer.write(masked(json.dumps(REGISTER).encode()))
            await flood.text()
        opening = masked(b"x", fin=False) if frame[0] == 0 else b""
        flood.writer.write(opening + frame * (Limits().frame_burst + 500))
        received = await asyncio.wait_for(flood.reader.read(), patience(5))
        assert received.rpartition(b"\x88")[2][1:3] == (1008).to_bytes(2, "big")
    await is_served(other)


async def test_a_flood_of_heartbeats_closes_with_1008(service: RegistryService, other: Node) -> None:
    async with node(service) as eager:
        await eager.register()
        text = json.dumps(heartbeat(eager.node_id))
        with contextlib.suppress(ConnectionClosed):
            for _ in range(Limits().frame_burst * 2):
                await eager.socket.send(text)
        assert (await eager.closed())[0] == 1008
    await is_served(other)


async def test_a_node_may_send_heartbeats_far_more_often_than_its_interval(service: RegistryService) -> None:
    async with node(service) as lively:
        await lively.register()
        for _ in range(200):
            await lively.heartbeat()
        await lively.receive_type("node_status", status="ready")


async def test_an_ack_after_the_end_does_not_keep_the_connection_open() -> None:
    """The store may answer after the peer has broken a rule and its connection has ended."""
    async with running(limits=Limits(close_timeout_seconds=0.2)) as service, raw(service) as broken:
        await until(lambda: service.size.connections == 1, what="the connection")
        (connection,) = service._connections._by_number.values()
        broken.writer.write(b"\x81\x02{}")
        assert await broken.close_code() == 1002
        connection.identify("node-1")
        await until(lambda: service.size.connections == 0, what="the connection dropped")


async def test_a_peer_that_resets_before_our_close_frame_does_no_harm(
    service: RegistryService,
) -> None:
    loop, queue = asyncio.get_running_loop(), service._connections.fair_queue
    problems: list[object] = []
    loop.set_exception_handler(lambda _, context: problems.append(context))
    with socket.socket() as peer:
        peer.settimeout(0)
        await loop.sock_connect(peer, _host_and_port(service))
        await loop.sock_sendall(peer, HANDSHAKE)
        assert (await loop.sock_recv(peer, 4096)).startswith(b"HTTP/1.1 101")
        (connection,) = service._connections._by_number.values()

        def hang_up_once_read() -> None:
            if connection._waiting:
                peer.close()
            else:
                queue.wait(hang_up_once_read, Work.SERVED)

        queue.wait(hang_up_once_read, Work.SERVED)
        await loop.sock_sendall(peer, b"\x81\x02{}")
        await until(lambda: service.size.connections == 0, what="the connection closed")
    assert problems == []


async def test_a_ping_is_answered(service: RegistryService) -> None:
    async with node(service) as polite:
        await asyncio.wait_for(await polite.socket.ping(), patience(5))


@pytest.mark.parametrize("reason", ["r" * 300, "ö" * 300], ids=["long", "long and odd"])
async def test_a_long_reason_still_closes_with_its_code(service: RegistryService, reason: str) -> None:
    async with node(service) as leaving:
        await leaving.register()
        await leaving.send({"type": "node_unregister", "node_id": leaving.node_id, "reason": reason})
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
            await asyncio.wait_for(stubborn.reader.read(), patience(5))
        await until(lambda: service.size.connections == 0, what="the connection dropped")


async def test_a_frame_sent_right_behind_the_handshake_is_read(service: RegistryService) -> None:
    async with raw(service, behind=masked(json.dumps(REGISTER).encode())) as eager:
        assert json.loads(await eager.text())["type"] == "node_register_ack"


async def test_a_node_unregister_in_the_same_read_as_the_close_frame_is_handled(
    service: RegistryService,
) -> None:
    async with raw(service, behind=masked(json.dumps(REGISTER).encode())) as leaving:
        node_id = json.loads(await leaving.text())["node_id"]
        goodbye = {"type": "node_unregister", "node_id": node_id, "reason": "shutdown", "drain": False}
        leaving.writer.write(masked(json.dumps(goodbye).encode()) + masked(b"\x03\xe8", opcode=8))
        await until(lambda: _status(service, node_id) == "offline", what="the node unregistered")


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
            (connection,) = service._connections._by_number.values()
            left: list[weakref.ref[object]] = [
                weakref.ref(connection),
                weakref.ref(connection._socket),
                weakref.ref(connection._socket._protocol),
            ]
            del connection
        await until(lambda: service.size.connections == 0, what="the connection closed")
        await until(lambda: [one() for one in left] == [None, None, None], what="its objects freed")
    finally:
        gc.enable()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
async def test_however_the_bytes_arrive_every_frame_is_read_once_and_in_order(data: st.DataObject) -> None:
    """Whole frames take a shorter way than split ones: both ways, mixed at will, read the same."""
    sizes = data.draw(st.lists(st.sampled_from([0, 40, 100, 300, 5_000, 70_000]), min_size=1, max_size=6))
    padded = [
        json.dumps({"type": "unknown", "mark": mark, "padding": "x" * size}).encode()
        for mark, size in enumerate(sizes)
    ]
    stream = b"".join(data.draw(st.sampled_from([masked, fragmented, pinged]))(one) for one in padded)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    received: list[bytes] = []
    async with running(QUICK) as service, raw(service) as peer:
        (connection,) = service._connections._by_number.values()
        connection._on_frame = lambda _, payload: received.append(payload)
        for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
            peer.writer.write(stream[start:end])
            await peer.writer.drain()
            await asyncio.sleep(0)
        await until(lambda: len(received) == len(padded), what="all frames read")
    assert received == padded


async def test_pieces_are_written_in_order_and_an_empty_one_closes_our_half() -> None:
    ours, theirs = socket.socketpair()
    transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, sock=ours)
    write_pieces(transport, [b"a", b"bc", b""])
    reader, writer = await asyncio.open_connection(sock=theirs)
    assert await asyncio.wait_for(reader.read(), patience(5)) == b"abc"
    assert not transport.is_closing()
    writer.close()
    transport.close()


async def test_a_peer_that_has_reset_aborts_the_connection() -> None:
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        there = socket.create_connection(listener.getsockname())
        here, _ = listener.accept()
    transport, _ = await loop.create_connection(asyncio.Protocol, sock=here)
    transport.pause_reading()
    there.close()
    write_pieces(transport, [b"the peer answers this with a reset", b""])
    await until(transport.is_closing, what="the end of the connection")  # uvloop reports it a turn later
    await asyncio.sleep(0)


class Transport(asyncio.BaseTransport):
    """Of a true socket; nothing is read or written through it."""

    def __init__(self, connection: socket.socket) -> None:
        super().__init__({"socket": connection})


@pytest.fixture
def connection() -> Iterator[socket.socket]:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as connection,
        server.accept()[0],
    ):
        yield connection


def test_the_round_trip_on_this_machine_is_under_a_second(
    connection: socket.socket,
) -> None:
    seconds = round_trip_seconds(Transport(connection))
    assert seconds is not None
    assert 0 < seconds < 1


def test_a_closed_or_unconnected_socket_has_no_round_trip(connection: socket.socket) -> None:
    connection.close()
    assert round_trip_seconds(Transport(connection)) is None
    with socket.socket() as unused:
        assert round_trip_seconds(Transport(unused)) is None


def test_without_tcp_info_there_is_no_round_trip(
    connection: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert round_trip_seconds(Transport(connection)) is None
