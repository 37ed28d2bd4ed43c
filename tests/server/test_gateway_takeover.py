"""What a gateway repeats to its next leader: all is real but the leader."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from gpu_agent.registry.settings import Thresholds
from gpu_agent.runtime.tasks import Tasks
from gpu_agent.server.gateway import gateway as gateway_module
from gpu_agent.server.gateway.gateway import Gateway
from gpu_agent.server.gateway.link import HeartbeatRow, Kind, Link, unpack_frame, unpack_held, unpack_rows
from gpu_agent.server.limits import SOONEST_RETRY_SECONDS, Limits
from gpu_agent.wire.codes import CloseCode
from tests.server.harness import LOOPBACK, Node, heartbeat, registration, until

FAULT: dict[str, object] = {"type": "node_error", "code": "DISK_FULL", "message": "no space"}
UNREGISTRATION: dict[str, object] = {"type": "node_unregister", "node_id": "node-1", "drain": True}


class Leader:
    """The other end of a gateway's link."""

    def __init__(self) -> None:
        self.kinds: list[Kind] = []
        self.heard: list[str] = []
        """The types of the messages that the gateway has handed on."""
        self.held: list[str] = []
        """The types of those that it repeated."""
        self.rows: list[list[HeartbeatRow]] = []
        """The counts of heartbeats without news, by frame."""
        self.link = Link(self._received, lambda _: None)
        self._local = 0

    def _received(self, kind: Kind, local: int, payload: memoryview) -> None:
        self.kinds.append(kind)
        self._local = local or self._local
        match kind:
            case Kind.HANDSHAKE:
                self.link.send_document(Kind.ACCEPT, local, {"number": 1, "credential": None})
            case Kind.FRAME:
                self.heard.append(json.loads(unpack_frame(payload)[1])["type"])
            case Kind.ROWS:
                self.rows.append([row for _, row in unpack_rows(payload, 0.0)])
            case Kind.HELD:
                self.held += [json.loads(one)["type"] for one in unpack_held(payload)[1]]

    def acknowledge(self) -> None:
        self.link.send_document(Kind.REGISTERED, self._local, {"node_id": "node-1", "session_epoch": 1})

    def refuse(self, code: str) -> None:
        self.link.send(Kind.REFUSAL, self._local, json.dumps({"type": "node_error", "code": code}).encode())

    def send_status(self) -> None:
        self.link.send(Kind.SEND, self._local, b'{"type":"node_status"}')


class Gatewayed:
    """A gateway, and one node on it."""

    def __init__(self, limits: Limits) -> None:
        self.gateway = Gateway(limits, Thresholds())
        self.uri = ""
        self.node: Node
        self._links: list[Link] = []

    async def lead(self) -> Leader:
        """Give it another leader, which hears all that the gateway holds."""
        leader = Leader()
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: leader.link, "127.0.0.1", 0)
        link = Link(self._received, lambda _: None)
        await loop.create_connection(lambda: link, *server.sockets[0].getsockname())
        server.close()
        self._links += [link, leader.link]
        self.gateway.attach(link)
        await until(lambda: Kind.LISTENING in leader.kinds, what="the report")
        return leader

    def _received(self, kind: Kind, local: int, payload: memoryview) -> None:
        self.gateway.received(kind, local, payload)

    async def lose_leader(self) -> None:
        self.gateway.detach()
        for link in self._links:
            link.end("another leads")
        self._links.clear()

    async def says(self, leader: Leader, message: dict[str, object]) -> None:
        """Let the node say something to a leader that hears it and does not answer."""
        heard = len(leader.heard)
        await self.node.send(message)
        await until(lambda: len(leader.heard) > heard, what="the message")


@asynccontextmanager
async def gatewayed(*, patience_seconds: float = 30.0) -> AsyncIterator[tuple[Gatewayed, Leader]]:
    one = Gatewayed(Limits(close_timeout_seconds=0.3, handshake_patience_seconds=patience_seconds))
    one.uri = f"ws://{await one.gateway.listener.listen(LOOPBACK)}/ws/node"
    await one.gateway.listener.admit()
    first = await one.lead()
    try:
        async with connect(one.uri, proxy=None, close_timeout=1) as socket:
            one.node = Node(socket)
            yield one, first
    finally:
        await one.gateway.listener.stop()
        await one.lose_leader()


async def registered(one: Gatewayed, leader: Leader) -> None:
    await one.says(leader, registration())
    leader.acknowledge()
    leader.send_status()
    await one.node.receive_type("node_status")


async def said_alone(one: Gatewayed, *messages: dict[str, object]) -> None:
    """Let the node say something without a leader; the gateway has read it once its pong is back."""
    for message in messages:
        await one.node.send(message)
    await (await one.node.socket.ping())


async def test_what_came_without_a_leader_is_repeated_to_one_leader_only() -> None:
    async with gatewayed() as (one, first):
        await registered(one, first)
        await one.lose_leader()
        await said_alone(one, FAULT, UNREGISTRATION)
        second = await one.lead()
        assert second.held == ["node_error", "node_unregister"]
        second.send_status()
        await one.node.receive_type("node_status")
        await one.lose_leader()
        assert (await one.lead()).held == []


async def test_a_message_without_an_answer_is_repeated_to_each_leader() -> None:
    async with gatewayed() as (one, _):
        await one.lose_leader()
        await said_alone(one, registration(), registration())
        for _ in range(2):
            assert (await one.lead()).held == ["node_register"]
            await one.lose_leader()


@pytest.mark.parametrize(
    ("code", "held"),
    [("RATE_LIMITED", ["node_register"]), ("UNKNOWN_NODE", ["node_register"]), ("NODE_ID_CONFLICT", [])],
)
async def test_a_registration_waits_until_it_is_answered_itself(code: str, held: list[str]) -> None:
    async with gatewayed() as (one, first):
        await one.says(first, registration())
        await one.says(first, heartbeat("node-1"))
        first.refuse(code)
        await one.node.receive_type("node_error")
        await one.lose_leader()
        assert (await one.lead()).held == held


@pytest.mark.parametrize(("code", "held"), [("RATE_LIMITED", ["node_unregister"]), ("UNKNOWN_NODE", [])])
async def test_an_unregistration_waits_until_it_is_answered_itself(code: str, held: list[str]) -> None:
    async with gatewayed() as (one, first):
        await registered(one, first)
        await one.says(first, UNREGISTRATION)
        first.refuse(code)
        await one.node.receive_type("node_error")
        await one.lose_leader()
        assert (await one.lead()).held == held


async def test_counts_wait_and_add_up_while_the_leader_reads_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gateway_module, "ROWS_SECONDS", 0.01)
    async with gatewayed() as (one, leader):
        await registered(one, leader)
        await one.says(leader, heartbeat("node-1"))
        sending = asyncio.ensure_future(one.gateway.send_rows())
        with monkeypatch.context() as backlog:
            backlog.setattr(Link, "is_backed_up", True)
            await asyncio.sleep(0)
            leader.rows.clear()
            await said_alone(one, heartbeat("node-1"), heartbeat("node-1"))
            await asyncio.sleep(0.05)
            assert leader.rows == []
        await until(lambda: any(leader.rows), what="the counts")
        assert [row.heartbeats for rows in leader.rows for row in rows] == [2]
        sending.cancel()


@asynccontextmanager
async def waiting_for_a_leader(one: Gatewayed) -> AsyncIterator["asyncio.Task[int]"]:
    """A peer whose handshake waits."""
    await one.lose_leader()
    async with Tasks() as tasks:
        tasks.start("rows", one.gateway.send_rows())
        peer = tasks.start("peer", attempt(one.uri))
        await until(lambda: len(one.gateway._waiting) == 1, what="its handshake")
        yield peer
        tasks.end()


async def attempt(uri: str) -> int:
    """Return the status with which a handshake ends; a refusal names a time to retry."""
    try:
        async with connect(uri, proxy=None, close_timeout=1):
            return 101
    except InvalidStatus as refused:
        answer = refused.response
    assert int(answer.headers["Retry-After"]) >= SOONEST_RETRY_SECONDS
    return answer.status_code


async def test_a_handshake_waits_for_the_next_leader() -> None:
    """To be refused costs a node as much, and it would come again before there is one."""
    async with gatewayed() as (one, _), waiting_for_a_leader(one) as peer:
        second = await one.lead()
        assert await peer == 101
        assert second.kinds.count(Kind.HANDSHAKE) == 1


async def test_a_handshake_that_a_leader_has_not_answered_waits_for_the_next_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with gatewayed() as (one, first):
        monkeypatch.setattr(first.link, "send_document", lambda *_: None)
        async with Tasks() as tasks:
            peer = tasks.start("peer", attempt(one.uri))
            await until(lambda: first.kinds.count(Kind.HANDSHAKE) == 2, what="its handshake")
            await one.lose_leader()
            await one.lead()
            assert await peer == 101


async def test_a_handshake_that_waits_in_vain_is_503_with_a_retry_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gateway_module, "ROWS_SECONDS", 0.1)
    async with gatewayed(patience_seconds=0.5) as (one, _), waiting_for_a_leader(one) as peer:
        assert await peer == 503
        assert not one.gateway._asked


async def test_no_handshake_waits_where_a_leader_is_out_of_reach_or_too_many_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with gatewayed() as (one, _), waiting_for_a_leader(one) as peer:
        monkeypatch.setattr(gateway_module, "MOST_WAITING", 1)
        assert await attempt(one.uri) == 503
        monkeypatch.undo()
        one.gateway.close_all(CloseCode.SERVICE_RESTART, "cut off")
        assert await peer == 503
        assert await attempt(one.uri) == 503


async def test_a_peer_that_leaves_while_it_waits_is_forgotten() -> None:
    async with gatewayed() as (one, _), waiting_for_a_leader(one) as peer:
        peer.cancel()
        number = next(iter(one.gateway._waiting))
        one.gateway.connections.fail(number, CloseCode.POLICY_VIOLATION, "gone")
        await until(lambda: not one.gateway._asked, what="its end")
        assert Kind.HANDSHAKE not in (await one.lead()).kinds


@pytest.mark.parametrize("answer", ["acknowledged", "GPU_REQUIRED"])
async def test_a_handshake_waits_while_as_many_nodes_register_as_the_leader_can_store(
    answer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway_module, "MOST_REGISTERING", 1)
    monkeypatch.setattr(gateway_module, "REGISTERING_SECONDS", 60.0)
    async with gatewayed() as (one, first), Tasks() as tasks:
        peer = tasks.start("peer", attempt(one.uri))
        await until(lambda: len(one.gateway._waiting) == 1, what="its handshake")
        assert first.kinds.count(Kind.HANDSHAKE) == 1
        await one.says(first, registration())
        if answer == "acknowledged":
            first.acknowledge()
        else:
            first.refuse(answer)
        assert await peer == 101


async def test_a_peer_that_does_not_register_keeps_no_other_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_module, "MOST_REGISTERING", 1)
    monkeypatch.setattr(gateway_module, "REGISTERING_SECONDS", 0.5)
    monkeypatch.setattr(gateway_module, "ROWS_SECONDS", 0.1)
    async with gatewayed() as (one, _), Tasks() as tasks:
        tasks.start("rows", one.gateway.send_rows())
        assert await attempt(one.uri) == 101
        tasks.end()
