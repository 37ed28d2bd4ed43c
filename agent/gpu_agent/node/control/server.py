"""The control socket's server: accepts programs of this machine and answers one request at a time.

Lines, connections and time are bounded, so that no caller can hold the agent up: a caller who sends too much,
too slowly or too often, or does not read, is disconnected. Where the socket cannot be opened the agent runs
without one, and the log says why.
"""

import asyncio
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from gpu_agent.local.connection import MAX_REQUEST_BYTES
from gpu_agent.node.control.access import AccessPolicy, Peer, peer_credentials
from gpu_agent.node.control.handlers import (
    ControlRefusal,
    RequestHandler,
    connection_worker,
    encode_answer,
    encode_refusal,
    parse_request,
)
from gpu_agent.node.jobs import WorkerProcess
from gpu_agent.node.log_limit import LogLimit
from gpu_agent.records import dataclass
from gpu_agent.runtime.logs import Logger
from gpu_agent.runtime.tasks import Tasks

_UNKNOWN_USER = ControlRefusal("forbidden", "the system does not say which user asks, so the agent refuses")
_BUSY = ControlRefusal("busy", "too many programs talk to this agent at once; try again in a moment")
_TOO_LONG = ControlRefusal("too_long", f"a question has at most {MAX_REQUEST_BYTES} bytes")
_OVERDUE = ControlRefusal("overdue", "the agent did not get to it in time; look at its log")
_LOG = Logger("node.control")


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlLimits:
    """How much the callers may cost. Seconds."""

    connections: int = 256
    per_user: int = 128
    """Of those, for each user who may not operate, so that no user blocks the others."""
    reserved_for_operators: int = 16
    """Of those, for root, the agent's own user and operators, so that other users cannot block them."""
    question_seconds: float = 10.0
    """For a request to arrive, on a connection that holds no job."""
    answer_seconds: float = 30.0
    read_seconds: float = 5.0
    """For the caller to read an answer."""
    pause_seconds: float = 0.005
    """Between two requests of one connection, so that the event loop does other work."""


@dataclass(frozen=True, slots=True)
class _Caller:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    peer: Peer
    worker: WorkerProcess


class ControlServer:
    """Serves one listener."""

    def __init__(
        self, handler: RequestHandler, policy: AccessPolicy, *, limits: ControlLimits | None = None
    ) -> None:
        self._handler = handler
        self._policy = policy
        self._limits = limits or ControlLimits()
        self._queue = FairQueue()
        self._log_limit = LogLimit()
        self._accepted: Counter[int] = Counter()
        """Open connections by user; a refused one does not count."""
        self._number = 0

    async def serve(self, listener: socket.socket, tasks: Tasks) -> None:
        """Serve until cancelled."""

        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self._number += 1
            tasks.start(f"control-{self._number}", self._serve_connection(reader, writer, self._number))

        limit = MAX_REQUEST_BYTES
        if sys.version_info >= (3, 13):
            # `access.listen` removes the socket: asyncio would look for it by an address that was valid once.
            server = await asyncio.start_unix_server(
                connected, sock=listener, limit=limit, cleanup_socket=False
            )
        else:
            server = await asyncio.start_unix_server(connected, sock=listener, limit=limit)
        async with server:
            await server.serve_forever()

    async def _serve_connection(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int
    ) -> None:
        """Accept a connection or refuse it; either way it ends here."""
        writer.transport.set_write_buffer_limits(high=0)  # what is drained has reached the kernel
        peer = peer_credentials(writer.get_extra_info("socket"))
        try:
            refusal = self._refuse_caller(peer)
            if peer is None or refusal is not None:
                await self._send(writer, encode_refusal(refusal or _UNKNOWN_USER))
            else:
                await self._serve_caller(_Caller(reader, writer, peer, connection_worker(number, peer)))
        except OSError:
            return  # gone, or too slow: a TimeoutError is one too
        finally:
            writer.transport.abort()

    def _refuse_caller(self, peer: Peer | None) -> ControlRefusal | None:
        if peer is None:
            return _UNKNOWN_USER
        if not self._policy.may_read(peer):
            suppressed = self._log_limit.admit("local_caller_refused", now=asyncio.get_running_loop().time())
            if suppressed is not None:
                _LOG.warning("local_caller_refused", uid=peer.uid, pid=peer.pid, **suppressed)
            return ControlRefusal(
                "forbidden",
                f"user {peer.uid} may not talk to this agent: root, its own user and members of the "
                "group that socket_group names may",
            )
        return None if self._has_room(peer) else _BUSY

    def _has_room(self, peer: Peer) -> bool:
        limits, accepted = self._limits, self._accepted.total()
        if self._policy.may_operate(peer):
            return accepted < limits.connections
        return accepted < limits.connections - limits.reserved_for_operators and (
            self._accepted[peer.uid] < limits.per_user
        )

    async def _serve_caller(self, caller: _Caller) -> None:
        self._accepted[caller.peer.uid] += 1
        try:
            while (line := await self._read_line(caller)) is not None:
                await self._send(caller.writer, await self._reply(line, caller))
                await asyncio.sleep(self._limits.pause_seconds)
        finally:
            self._accepted -= Counter((caller.peer.uid,))
            self._handler.jobs.close_connection(caller.worker)

    async def _read_line(self, caller: _Caller) -> bytes | None:
        """Wait for a line, without limit while the caller's job runs; None at the connection's end."""
        seconds = None if self._handler.jobs.has_job(caller.worker) else self._limits.question_seconds
        try:
            async with asyncio.timeout(seconds):
                return await caller.reader.readuntil()
        except asyncio.IncompleteReadError:
            return None
        except asyncio.LimitOverrunError:
            await self._send(caller.writer, encode_refusal(_TOO_LONG))
            return None

    async def _reply(self, line: bytes, caller: _Caller) -> bytes:
        request = parse_request(line)
        if isinstance(request, ControlRefusal):
            return encode_refusal(request)
        try:
            async with asyncio.timeout(self._limits.answer_seconds):
                refusal = await self._handler.execute(request, caller.peer)
        except TimeoutError:
            return encode_refusal(_OVERDUE)
        if refusal is not None:
            return encode_refusal(refusal)
        async with self._queue.turn(caller.peer.uid):
            answer = self._handler.answer(request, caller.peer, caller.worker)
            return encode_refusal(answer) if isinstance(answer, ControlRefusal) else encode_answer(answer)

    async def _send(self, writer: asyncio.StreamWriter, line: bytes) -> None:
        writer.write(line)
        async with asyncio.timeout(self._limits.read_seconds):
            await writer.drain()


REST_RATIO = 1.0
"""After an answer its user waits this many times as long as the answer took: one user gets half the time."""


class FairQueue:
    """Answers one request per user at a time, with a rest behind each.

    However many connections a user opens, that user's requests cost the agent a bounded share of its time,
    and delay no other user's.
    """

    def __init__(self) -> None:
        self._by_user: dict[int, _UserQueue] = {}

    @asynccontextmanager
    async def turn(self, uid: int) -> AsyncIterator[None]:
        """Wait for a user's turn; it lasts as long as the block, which must not wait."""
        queue = self._by_user.setdefault(uid, _UserQueue())
        loop = asyncio.get_running_loop()
        async with queue.lock:
            await asyncio.sleep(max(0.0, queue.rests_until - loop.time()))
            began = loop.time()
            try:
                yield
            finally:
                ended = loop.time()
                queue.rests_until = ended + REST_RATIO * (ended - began)


class _UserQueue:
    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.rests_until = 0.0
