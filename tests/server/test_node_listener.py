"""The nodes' port: who is accepted, refused or evicted, and how it opens and closes."""

import asyncio
import contextlib
import http
import socket
from contextlib import AsyncExitStack
from itertools import pairwise

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from gpu_agent.runtime.address import Address
from gpu_agent.server import loop as loop_module
from gpu_agent.server.fair_queue import Work
from gpu_agent.server.limits import Limits
from gpu_agent.server.message_handler import MessageHandler
from gpu_agent.server.node_connection import NodeConnections
from gpu_agent.server.node_listener import ACCEPTED_AT_ONCE, RETRY_AFTER_SECONDS, NodeListener
from tests.server.disks import StuckStore
from tests.server.harness import LOOPBACK, admit_all, node, registration, running, until, url
from tests.waiting import patience

LEAST_AT_ONCE = 16
"""A busy registry, whose turns take long, must accept a fleet that comes back."""


def _ignore(*_: object) -> None:
    """No fleet, and no answer."""


def listening(limits: Limits) -> tuple[NodeListener, NodeConnections]:
    connections = NodeConnections(limits)
    messages = MessageHandler(_ignore, send=_ignore, auth_on=False)
    return NodeListener(
        connections,
        on_frame=messages.frame_arrived,
        on_lost=messages.connection_lost,
        authenticate=admit_all,
    ), connections


async def refused(address: str) -> InvalidStatus:
    with pytest.raises(InvalidStatus) as refusal:
        await connect(address, proxy=None)
    return refusal.value


@pytest.mark.parametrize("path", ["/", "/ws", "/ws/node/", "/ws/node2", "//ws/node", "/WS/NODE"])
async def test_any_other_path_is_404(path: str) -> None:
    async with running() as service:
        assert (await refused(url(service, path))).response.status_code == http.HTTPStatus.NOT_FOUND


async def test_a_query_does_not_change_the_path() -> None:
    async with running() as service, connect(url(service, "/ws/node?token=abc"), proxy=None) as socket:
        assert socket.response is not None
        assert socket.response.status_code == http.HTTPStatus.SWITCHING_PROTOCOLS


async def test_over_max_connections_is_503_with_retry_after_and_room_opens_again() -> None:
    async with running(limits=Limits(max_connections=1, close_timeout_seconds=0.3)) as service:
        async with node(service) as first:
            await first.register()
            response = (await refused(url(service))).response
            assert response.status_code == http.HTTPStatus.SERVICE_UNAVAILABLE
            assert response.headers["Retry-After"] == str(RETRY_AFTER_SECONDS)
        async with node(service) as second:
            assert (await second.register())["type"] == "node_register_ack"


async def test_before_admit_connections_wait_in_the_kernel_and_are_served_then() -> None:
    listener, connections = listening(Limits(close_timeout_seconds=0.1))
    address = await listener.listen(LOOPBACK)
    early = asyncio.ensure_future(connect(f"ws://{address}/ws/node", proxy=None).__aenter__())
    await asyncio.sleep(0.05)
    assert connections.size == 0
    assert not early.done()
    await listener.admit()
    socket = await asyncio.wait_for(early, patience(5))
    assert connections.size == 1
    await socket.close()
    await listener.stop()


async def test_admit_needs_an_open_port() -> None:
    with pytest.raises(RuntimeError, match="listen"):
        await listening(Limits())[0].admit()


async def test_stop_closes_connections_with_1001_and_frees_the_port() -> None:
    listener, _ = listening(Limits(close_timeout_seconds=1))
    address = await listener.listen(LOOPBACK)
    await listener.admit()
    async with connect(f"ws://{address}/ws/node", proxy=None) as socket:
        await listener.stop()
        await asyncio.wait_for(socket.wait_closed(), patience(5))
        assert socket.close_code == 1001
    again, _ = listening(Limits())
    assert (await again.listen(Address(address.host, address.port))).port == address.port
    await again.stop()


async def test_stop_does_not_wait_for_peers_that_never_answer() -> None:
    listener, connections = listening(Limits(close_timeout_seconds=0.2))
    address = await listener.listen(LOOPBACK)
    await listener.admit()
    _, writer = await asyncio.open_connection(address.host, address.port)
    writer.write(b"GET /ws/node HTTP/1.1\r\n")
    await until(lambda: connections.size == 1, what="the connection accepted")
    await asyncio.wait_for(listener.stop(), 2)
    assert connections.size == 0
    writer.close()


async def test_a_port_in_use_raises_oserror() -> None:
    (first, _), (second, _) = listening(Limits()), listening(Limits())
    address = await first.listen(LOOPBACK)
    with pytest.raises(OSError, match="in use"):
        await second.listen(address)
    await second.stop()
    await first.stop()


async def test_messages_to_a_closed_connection_are_dropped() -> None:
    _, connections = listening(Limits())
    connections.send(7, "{}")
    connections.close(7, 1001, "")
    connections.identify(7, "node-1")
    assert connections.size == 0


async def test_too_many_unregistered_from_one_address_are_503_until_some_register_or_close() -> None:
    limits = Limits(max_unregistered_per_origin=2, close_timeout_seconds=0.3)
    async with running(limits=limits) as service:
        async with node(service) as first, node(service):
            response = (await refused(url(service))).response
            assert response.status_code == http.HTTPStatus.SERVICE_UNAVAILABLE
            assert response.headers["Retry-After"] == str(RETRY_AFTER_SECONDS)
            await first.register()
            async with node(service) as third:
                assert (await third.register())["type"] == "node_register_ack"
        async with node(service) as later:
            assert (await later.register())["type"] == "node_register_ack"


async def test_a_handshake_that_waited_too_long_is_503_with_a_retry_time() -> None:
    limits = Limits(handshake_patience_seconds=0.2, close_timeout_seconds=0.3)
    async with running(limits=limits) as service:
        busy = asyncio.get_running_loop().time() + 0.4
        queue = service._connections.fair_queue

        def work() -> None:
            if asyncio.get_running_loop().time() < busy:
                queue.wait(work, Work.SERVED)

        queue.wait(work, Work.SERVED)
        response = (await refused(url(service))).response
        assert response.status_code == http.HTTPStatus.SERVICE_UNAVAILABLE
        assert 2 <= int(response.headers["Retry-After"]) <= 30
        async with node(service) as later:
            assert (await later.register())["type"] == "node_register_ack"


async def test_bytes_that_wait_in_the_fair_queue_are_not_late() -> None:
    limits = Limits(
        handshake_timeout_seconds=0.1, registration_timeout_seconds=0.2, close_timeout_seconds=0.3
    )
    async with running(limits=limits) as service:
        busy = asyncio.get_running_loop().time() + 0.4
        queue = service._connections.fair_queue

        def work() -> None:
            if asyncio.get_running_loop().time() < busy:
                queue.wait(work, Work.SERVED)

        queue.wait(work, Work.SERVED)
        async with node(service) as patient:
            assert (await patient.register())["type"] == "node_register_ack"


async def test_bytes_that_wait_in_the_fair_queue_count_as_held() -> None:
    async with running() as service, node(service) as known:
        await known.register()
        connections, recorded = service._connections, list[int]()

        def work() -> None:
            if connections.memory.total_bytes < 1_000:
                connections.fair_queue.wait(work, Work.SERVED)
            else:
                recorded.append(connections.memory.total_bytes)

        connections.fair_queue.wait(work, Work.SERVED)
        known.socket.transport.write((b"\x81\x82" + b"\0" * 4 + b"{}") * 3000)
        await until(lambda: recorded, what="the waiting bytes recorded")
        await until(lambda: connections.memory.total_bytes == 0, what="nothing held")


async def test_a_registration_waits_while_the_store_is_behind_and_is_not_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loop_module, "BEHIND_SECONDS", 0.05)
    monkeypatch.setattr(loop_module, "ANSWER_SECONDS", patience(5))
    store = StuckStore()
    async with running(store=store) as service, node(service) as first, node(service) as second:
        store.answering.clear()
        await first.send(registration())
        await until(service._loop.is_store_behind, what="an output that waits")
        await second.send(registration())
        await until(lambda: service._connections.fair_queue.waiting == 1, what="the second one held")
        assert len(list(service.nodes())) == 1
        store.answering.set()
        assert (await first.receive())["type"] == "node_register_ack"
        assert (await second.receive())["type"] == "node_register_ack"


async def test_of_too_many_handshakes_the_oldest_is_closed_and_new_ones_succeed() -> None:
    async with running(limits=Limits(max_handshakes=2, close_timeout_seconds=0.3)) as service:
        address = service.node_address
        slow = [await asyncio.open_connection(address.host, address.port) for _ in range(2)]
        await until(lambda: service.size.connections == 2, what="two silent connections")
        async with node(service) as quick:
            assert (await quick.register())["type"] == "node_register_ack"
            with contextlib.suppress(ConnectionError):
                assert await asyncio.wait_for(slow[0][0].read(), patience(5)) == b""
            assert service.size.connections == 2
        for _, writer in slow:
            writer.close()


async def test_unfinished_messages_beyond_the_budget_close_unregistered_peers_with_1013() -> None:
    limits = Limits(max_held_bytes=100_000, close_timeout_seconds=0.3)
    async with running(limits=limits) as service, node(service) as known:
        await known.register()
        begun = b"\x81\xff" + (60_000).to_bytes(8, "big") + b"\0" * 4 + b"x" * 40_000
        known.socket.transport.write(begun)
        await until(lambda: service._connections.memory.total_bytes >= 40_000, what="one message begun")
        async with AsyncExitStack() as stack:
            greedy = [await stack.enter_async_context(node(service)) for _ in range(3)]
            for one in greedy:
                one.socket.transport.write(begun)
            codes = [asyncio.ensure_future(one.closed()) for one in greedy]
            done, (waiting,) = await asyncio.wait(codes, timeout=1)
            assert {closed.result()[0] for closed in done} == {1013}
            waiting.cancel()
        assert service._connections.memory.total_bytes == 40_000
        known.socket.transport.write(b"x" * 20_000)
        assert (await known.receive_type("node_error"))["code"] == "INVALID_MESSAGE"
        assert service._connections.memory.total_bytes == 0


async def test_one_turn_of_the_loop_accepts_a_limited_number_of_connections() -> None:
    listener, connections = listening(Limits(close_timeout_seconds=0.2))
    address = await listener.listen(LOOPBACK)
    await listener.admit()
    queued = [socket.create_connection((address.host, address.port)) for _ in range(ACCEPTED_AT_ONCE * 3)]
    sizes = []
    while connections.size < len(queued):
        await asyncio.sleep(0)
        sizes.append(connections.size)
    steps = [after - before for before, after in pairwise([0, *sizes])]
    assert LEAST_AT_ONCE <= max(steps) <= ACCEPTED_AT_ONCE
    for one in queued:
        one.close()
    await listener.stop()
