"""The local socket: lets programs on this machine in, and has them answered, one question at a time.

Bounded in lines, connections and time, so that nobody who is let in can hold the agent up: who sends
too much, too slowly or too often, or does not read, is dropped. It decides nothing: `answers`
does. Where the socket cannot be had the agent goes on without, and says so.
"""

import asyncio
import socket
import sys
from collections import Counter
from dataclasses import dataclass

from gpu_agent.local.conversation import LONGEST_REQUEST_BYTES
from gpu_agent.node.jobs import Worker
from gpu_agent.node.repeats import Repeats
from gpu_agent.node.socket.answers import Answers, Asked
from gpu_agent.node.socket.jobs import connected
from gpu_agent.node.socket.peer import House, Peer, peer_of
from gpu_agent.node.socket.requests import Refusal, answer, read, refuse
from gpu_agent.node.socket.turns import Turns
from gpu_agent.runtime.logs import EventLog
from gpu_agent.runtime.tasks import Tasks

_LOG = EventLog("node.local")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """How much those who are let in may cost. Seconds."""

    connections: int = 256
    of_one_user: int = 128
    """Of those, for any one who may not give orders, so that he cannot shut out the others."""
    kept_for_orders: int = 16
    """Of those, for root and the agent's own user, so that others cannot shut them out."""
    question_seconds: float = 10.0
    """For a question to come, on a connection that holds no job."""
    answer_seconds: float = 30.0
    read_seconds: float = 5.0
    """For an answer to be taken."""
    pause_seconds: float = 0.005
    """Between two questions of one connection, so that the loop has its turn."""


@dataclass(frozen=True, slots=True)
class _Guest:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    peer: Peer
    worker: Worker


class LocalSocket:
    """Serves one listener."""

    def __init__(self, agent: Asked, house: House, *, bounds: Bounds | None = None) -> None:
        self._house = house
        self._bounds = bounds or Bounds()
        self._answers = Answers(agent, house)
        self._turns = Turns()
        self._repeats = Repeats()
        self._open: Counter[int] = Counter()
        """Those that were let in, by their users: to be turned away takes nobody's place."""
        self._number = 0

    async def serve(self, listener: socket.socket, tasks: Tasks) -> None:
        """Serve until cancelled."""

        def arrived(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self._number += 1
            tasks.start(f"local-{self._number}", self._received(reader, writer, self._number))

        limit = LONGEST_REQUEST_BYTES
        if sys.version_info >= (3, 13):
            # Whoever made the socket removes it: asyncio would look for it by an address that held only once.
            server = await asyncio.start_unix_server(
                arrived, sock=listener, limit=limit, cleanup_socket=False
            )
        else:
            server = await asyncio.start_unix_server(arrived, sock=listener, limit=limit)
        async with server:
            await server.serve_forever()

    async def _received(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int
    ) -> None:
        """Let one in or not; whatever becomes of it, its connection ends here."""
        writer.transport.set_write_buffer_limits(high=0)  # what is drained has reached the kernel
        peer = peer_of(writer.get_extra_info("socket"))
        try:
            refusal = self._shut_out(peer)
            if peer is None or refusal is not None:
                await self._send(writer, refuse(refusal or _UNSEEN))
            else:
                await self._converse(_Guest(reader, writer, peer, connected(number, peer)))
        except OSError:
            return  # gone, or too slow: a TimeoutError is one too
        finally:
            writer.transport.abort()

    def _shut_out(self, peer: Peer | None) -> Refusal | None:
        if peer is None:
            return _UNSEEN
        if not self._house.may_look(peer):
            also = self._repeats.admit("local_caller_refused", now=asyncio.get_running_loop().time())
            if also is not None:
                _LOG.warning("local_caller_refused", uid=peer.uid, pid=peer.pid, **also)
            return Refusal(
                "forbidden",
                f"user {peer.uid} may not talk to this agent: root, its own user and members of the "
                "group that socket_group names may",
            )
        return None if self._has_room(peer) else _BUSY

    def _has_room(self, peer: Peer) -> bool:
        bounds, taken = self._bounds, self._open.total()
        if self._house.may_order(peer):
            return taken < bounds.connections
        return taken < bounds.connections - bounds.kept_for_orders and (
            self._open[peer.uid] < bounds.of_one_user
        )

    async def _converse(self, guest: _Guest) -> None:
        self._open[guest.peer.uid] += 1
        try:
            while (line := await self._question(guest)) is not None:
                await self._send(guest.writer, await self._reply(line, guest))
                await asyncio.sleep(self._bounds.pause_seconds)
        finally:
            self._open -= Counter((guest.peer.uid,))
            self._answers.jobs.gone(guest.worker)

    async def _question(self, guest: _Guest) -> bytes | None:
        """Wait for a line; None once there comes no more. A worker is waited for while its job runs."""
        patience = None if self._answers.jobs.holds(guest.worker) else self._bounds.question_seconds
        try:
            async with asyncio.timeout(patience):
                return await guest.reader.readuntil()
        except asyncio.IncompleteReadError:
            return None
        except asyncio.LimitOverrunError:
            await self._send(guest.writer, refuse(_TOO_LONG))
            return None

    async def _reply(self, line: bytes, guest: _Guest) -> bytes:
        question = read(line)
        if isinstance(question, Refusal):
            return refuse(question)
        try:
            async with asyncio.timeout(self._bounds.answer_seconds):
                refusal = await self._answers.heed(question, guest.peer)
        except TimeoutError:
            return refuse(_OVERDUE)
        if refusal is not None:
            return refuse(refusal)
        async with self._turns.one(guest.peer.uid):
            reply = self._answers.to(question, guest.peer, guest.worker)
            return refuse(reply) if isinstance(reply, Refusal) else answer(reply)

    async def _send(self, writer: asyncio.StreamWriter, line: bytes) -> None:
        writer.write(line)
        async with asyncio.timeout(self._bounds.read_seconds):
            await writer.drain()


_UNSEEN = Refusal("forbidden", "the system does not say who asks, and then nobody is let in")
_BUSY = Refusal("busy", "too many programs talk to this agent at once; try again in a moment")
_TOO_LONG = Refusal("too_long", f"a question has {LONGEST_REQUEST_BYTES} bytes at the most")
_OVERDUE = Refusal("overdue", "the agent did not get to it in time; look at its log")
