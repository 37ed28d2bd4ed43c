"""The control socket's server: accepts programs of this machine and answers one request at a time.

Lines, connections and time are bounded, so that no caller can hold the agent up: a caller who sends too much,
too slowly or too often, or does not read, is disconnected. Where the socket cannot be opened the agent runs
without one, and the log says why.
"""

import asyncio
import contextlib
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from gpu_agent.local.connection import LONGEST_REQUEST_BYTES
from gpu_agent.local.socket_path import SOCKET_NAME
from gpu_agent.node.control.access import AccessPolicy, Peer, own_uid, peer_credentials
from gpu_agent.node.control.handlers import ControlledAgent, RequestHandler
from gpu_agent.node.control.requests import (
    Refusal,
    connection_worker,
    encode_answer,
    encode_refusal,
    parse_request,
)
from gpu_agent.node.jobs import Worker
from gpu_agent.node.log_limit import LogLimit
from gpu_agent.node.settings import AgentSettings, group_id
from gpu_agent.node.socket_file import SocketUnavailableError, find_closed_folder, listen
from gpu_agent.runtime.logs import Logger
from gpu_agent.runtime.tasks import Tasks

# The local socket: lets programs on this machine in, and has them answered, one question at a time.
#
# Bounded in lines, connections and time, so that nobody who is let in can hold the agent up: who sends
# too much, too slowly or too often, or does not read, is dropped. It decides nothing: `answers`
# does. Where the socket cannot be had the agent goes on without, and says so.


_LOG = Logger("node.control")


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlLimits:
    """How much those who are let in may cost. Seconds."""

    connections: int = 256
    per_user: int = 128
    """Of those, for any one who may not give orders, so that he cannot shut out the others."""
    kept_for_operators: int = 16
    """Of those, for root and the agent's own user, so that others cannot shut them out."""
    question_seconds: float = 10.0
    """For a question to come, on a connection that holds no job."""
    answer_seconds: float = 30.0
    read_seconds: float = 5.0
    """For an answer to be taken."""
    pause_seconds: float = 0.005
    """Between two questions of one connection, so that the loop has its turn."""


@dataclass(frozen=True, slots=True)
class _Caller:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    peer: Peer
    worker: Worker


class ControlServer:
    """Serves one listener."""

    def __init__(
        self, agent: ControlledAgent, house: AccessPolicy, *, bounds: ControlLimits | None = None
    ) -> None:
        self._house = house
        self._bounds = bounds or ControlLimits()
        self._answers = RequestHandler(agent, house)
        self._turns = FairQueue()
        self._repeats = LogLimit()
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
        peer = peer_credentials(writer.get_extra_info("socket"))
        try:
            refusal = self._shut_out(peer)
            if peer is None or refusal is not None:
                await self._send(writer, encode_refusal(refusal or _UNSEEN))
            else:
                await self._converse(_Caller(reader, writer, peer, connection_worker(number, peer)))
        except OSError:
            return  # gone, or too slow: a TimeoutError is one too
        finally:
            writer.transport.abort()

    def _shut_out(self, peer: Peer | None) -> Refusal | None:
        if peer is None:
            return _UNSEEN
        if not self._house.may_read(peer):
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
        if self._house.may_operate(peer):
            return taken < bounds.connections
        return taken < bounds.connections - bounds.kept_for_operators and (
            self._open[peer.uid] < bounds.per_user
        )

    async def _converse(self, guest: _Caller) -> None:
        self._open[guest.peer.uid] += 1
        try:
            while (line := await self._question(guest)) is not None:
                await self._send(guest.writer, await self._reply(line, guest))
                await asyncio.sleep(self._bounds.pause_seconds)
        finally:
            self._open -= Counter((guest.peer.uid,))
            self._answers.jobs.gone(guest.worker)

    async def _question(self, guest: _Caller) -> bytes | None:
        """Wait for a line; None once there comes no more. A worker is waited for while its job runs."""
        patience = None if self._answers.jobs.holds(guest.worker) else self._bounds.question_seconds
        try:
            async with asyncio.timeout(patience):
                return await guest.reader.readuntil()
        except asyncio.IncompleteReadError:
            return None
        except asyncio.LimitOverrunError:
            await self._send(guest.writer, encode_refusal(_TOO_LONG))
            return None

    async def _reply(self, line: bytes, guest: _Caller) -> bytes:
        question = parse_request(line)
        if isinstance(question, Refusal):
            return encode_refusal(question)
        try:
            async with asyncio.timeout(self._bounds.answer_seconds):
                refusal = await self._answers.heed(question, guest.peer)
        except TimeoutError:
            return encode_refusal(_OVERDUE)
        if refusal is not None:
            return encode_refusal(refusal)
        async with self._turns.one(guest.peer.uid):
            reply = self._answers.to(question, guest.peer, guest.worker)
            return encode_refusal(reply) if isinstance(reply, Refusal) else encode_answer(reply)

    async def _send(self, writer: asyncio.StreamWriter, line: bytes) -> None:
        writer.write(line)
        async with asyncio.timeout(self._bounds.read_seconds):
            await writer.drain()


_UNSEEN = Refusal("forbidden", "the system does not say who asks, and then nobody is let in")
_BUSY = Refusal("busy", "too many programs talk to this agent at once; try again in a moment")
_TOO_LONG = Refusal("too_long", f"a question has {LONGEST_REQUEST_BYTES} bytes at the most")
_OVERDUE = Refusal("overdue", "the agent did not get to it in time; look at its log")


# Turns at being answered: for each user one answer after the other, with a rest of the loop behind each.
#
# However many connections one user has, his questions together cost the agent a bounded share of its time,
# and other users' wait for none of his. It refuses to know what is asked.


REST_RATIO = 1.0
"""So many times as long as an answer took, its user gets no other: half of the time is his at most."""


class FairQueue:
    """Those of all users."""

    def __init__(self) -> None:
        self._of: dict[int, _UserQueue] = {}

    @asynccontextmanager
    async def one(self, uid: int) -> AsyncIterator[None]:
        """Wait for a user's turn; it lasts as long as the block, which waits for nothing."""
        turn = self._of.setdefault(uid, _UserQueue())
        loop = asyncio.get_running_loop()
        async with turn.lock:
            await asyncio.sleep(max(0.0, turn.rests_until - loop.time()))
            began = loop.time()
            try:
                yield
            finally:
                ended = loop.time()
                turn.rests_until = ended + REST_RATIO * (ended - began)


class _UserQueue:
    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.rests_until = 0.0


# The local socket as a run of the agent has it: opened before its loop begins, closed behind its end.
#
# Where it cannot be had the agent goes on without one, which is logged; nothing else depends on it.


@dataclass(frozen=True, slots=True)
class ControlSocket:
    """Where programs on this machine come in, and who may."""

    listener: socket.socket
    house: AccessPolicy


@contextmanager
def open_control_socket(settings: AgentSettings, state_dir: Path) -> Iterator[ControlSocket | None]:
    """Listen while the block runs; None where there is no socket to be had."""
    path = settings.socket or state_dir / SOCKET_NAME
    with contextlib.ExitStack() as stack:
        try:
            group = group_id(settings.socket_group, "socket_group")
            operators = group_id(settings.socket_operators, "socket_operators")
            listener = stack.enter_context(listen(path, group=group))
        except SocketUnavailableError as error:
            _LOG.warning("local_socket_unavailable", problem=str(error))
            yield None
            return
        shared = path.lstat().st_gid if group is None else group
        _LOG.info("local_socket_listening", path=str(path), group=shared)
        if group is not None and (closed := find_closed_folder(path, group)) is not None:
            problem = f"members of group {group} may not enter {closed}: name another place with `socket`"
            _LOG.warning("local_socket_unreachable", path=str(path), group=group, problem=problem)
        yield ControlSocket(listener, AccessPolicy(own_uid(), shared, operators))
