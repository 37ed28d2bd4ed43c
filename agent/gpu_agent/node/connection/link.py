"""One WebSocket to the registry, from the first packet to the last: frames in and out, never a hang.

Everything that happens on it becomes an event of the session; after `close` it reports nothing. Every wait
for the network has a deadline. When to connect, with which credential and what to send is the session's
decision. `handshake` opens the WebSocket.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from gpu_agent.node.connection.handshake import HandshakeFailure, open_websocket
from gpu_agent.node.connection.proxy import Proxy
from gpu_agent.node.connection.tls import DEFAULT, Security, in_the_clear
from gpu_agent.node.log_limit import LogLimit
from gpu_agent.runtime.logs import Logger
from gpu_agent.runtime.tasks import Tasks
from gpu_agent.runtime.tls.errors import TlsProblem
from gpu_agent.session.types import Connected, ConnectFailed, Disconnected, MessageReceived
from gpu_agent.wire.codec import FrameError, UnknownMessageError, decode_from_registry

LinkEvent = Connected | ConnectFailed | MessageReceived | Disconnected
Report = Callable[["Link", LinkEvent], Awaitable[None]]

SEND_SECONDS = 10.0
MOST_UNSENT = 64
"""Frames that may wait for a slow peer before it is given up."""

_GOING_AWAY = 1001
_LOG = Logger("node.link")


@dataclass(frozen=True, slots=True)
class _Close:
    code: int
    reason: str


@dataclass(frozen=True, slots=True)
class HandshakeResult:
    """What came of a handshake alone."""

    failure: ConnectFailed | None
    """None: let in."""
    date: str | None = None
    """The answer's `Date` header."""
    words: str = ""
    """What a refusal said of itself."""
    trouble: TlsProblem | None = None
    """What to mend, where it is of TLS or of what may be sent in the clear."""


async def try_handshake(
    url: str, token: str | None, *, proxy: Proxy | None = None, security: Security = DEFAULT
) -> HandshakeResult:
    """Shake hands and leave at once, without a word of the protocol: to find out what a link would meet."""
    connection = await open_websocket(url, token, proxy=proxy, security=security)
    if isinstance(connection, HandshakeFailure):
        return HandshakeResult(connection.failure, connection.date, connection.words, connection.trouble)
    try:
        date = connection.response.headers.get_all("Date") if connection.response else []
        await connection.close(_GOING_AWAY, "looked whether this way is open")
    finally:
        connection.transport.abort()
    return HandshakeResult(None, next(iter(date), None))


class Link:
    """Opens at `start`; told to `send` and to `close`; ends by itself when the peer does."""

    def __init__(
        self,
        url: str,
        *,
        token: str | None,
        report: Report,
        proxy: Proxy | None = None,
        security: Security = DEFAULT,
    ) -> None:
        """`token` goes into the handshake's Authorization header, and nowhere else.

        A listener that gets events of several links tells them apart by the link.
        """
        self._url = url
        self._token = token
        self._proxy = proxy
        self._security = security
        self._report = report
        self._outbox: asyncio.Queue[str | _Close] = asyncio.Queue(MOST_UNSENT)
        self._connection: ClientConnection | None = None
        self._closing = False
        self._repeats = LogLimit()
        self._task: asyncio.Task[None]

    def start(self, tasks: Tasks) -> None:
        """Begin to connect; `Connected` or `ConnectFailed` is reported."""
        self._task = tasks.start("link", self._run())

    def send(self, text: str) -> None:
        """Send a frame after those before it. Never waits; a peer that takes nothing is cut off."""
        self._put(text)

    def close(self, code: int, reason: str) -> None:
        """Say goodbye after what is still unsent, or give up connecting; reports nothing from now on."""
        if self._closing:
            return
        self._closing = True
        if self._connection is None:
            self._task.cancel()
        else:
            self._put(_Close(code, reason))

    async def ended(self, *, within_seconds: float) -> None:
        """Wait for the last packet, but not for longer."""
        await asyncio.wait({self._task}, timeout=within_seconds)

    def _put(self, out: str | _Close) -> None:
        try:
            self._outbox.put_nowait(out)
        except asyncio.QueueFull:
            if self._connection is not None:
                self._connection.transport.abort()

    async def _run(self) -> None:
        connection = await open_websocket(self._url, self._token, proxy=self._proxy, security=self._security)
        if isinstance(connection, HandshakeFailure):
            await self._tell(connection.failure)
            return
        self._connection = connection
        if self._token is not None and in_the_clear(self._url, connection.remote_address, self._proxy):
            _LOG.warning("token_sent_plaintext", registry=self._url)
        try:
            await self._tell(Connected())
            await self._tell(await self._converse(connection))
        finally:
            connection.transport.abort()  # closed by now, unless the agent ends in the middle

    async def _converse(self, connection: ClientConnection) -> Disconnected:
        async with Tasks() as tasks:
            tasks.start("link-writer", self._write(connection))
            lost = await self._read(connection)
            tasks.end()
        return lost

    async def _read(self, connection: ClientConnection) -> Disconnected:
        try:
            while True:
                await self._take(await connection.recv())
        except ConnectionClosed as closed:
            because = f" ({closed.__cause__})" if isinstance(closed.__cause__, OSError) else ""
            return Disconnected(closed.rcvd.code if closed.rcvd else None, f"{closed}{because}")

    async def _write(self, connection: ClientConnection) -> None:
        try:
            while True:
                out = await self._outbox.get()
                async with asyncio.timeout(SEND_SECONDS):
                    if isinstance(out, _Close):
                        await connection.close(out.code, out.reason)
                        return
                    await connection.send(out)
        except ConnectionClosed:
            return
        except TimeoutError:
            _LOG.warning("link_stalled", seconds=SEND_SECONDS)
            connection.transport.abort()

    async def _take(self, frame: str | bytes) -> None:
        """Read one frame; one that is no message is logged, and the link goes on."""
        if isinstance(frame, bytes):
            self._complain("it is binary")
            return
        try:
            message = decode_from_registry(frame)
        except FrameError as error:
            self._complain(str(error), newer_peer=isinstance(error, UnknownMessageError))
        else:
            await self._tell(MessageReceived(message))

    def _complain(self, reason: str, *, newer_peer: bool = False) -> None:
        also = self._repeats.admit("frame_ignored", now=time.monotonic())
        if also is not None:
            tell = _LOG.info if newer_peer else _LOG.warning
            tell("frame_ignored", reason=reason, **also)

    async def _tell(self, event: LinkEvent) -> None:
        """Report; as long as the listener is busy, nothing more is read."""
        if not self._closing:
            await self._report(self, event)
