"""One WebSocket to the registry, from the first packet to the last: frames in and out, never a hang.

Everything that happens on it becomes an event of the session; after `close` it reports nothing. Every wait
for the network has a deadline. When to connect, with which credential and what to send is the session's
decision. `handshake` opens the WebSocket.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from gpu_agent.node.connection.handshake import HandshakeFailure, open_websocket
from gpu_agent.node.connection.tls import DEFAULT, Security, is_readable
from gpu_agent.node.log_limit import LogLimit
from gpu_agent.records import dataclass
from gpu_agent.runtime.logs import Logger
from gpu_agent.runtime.proxy import Proxy
from gpu_agent.runtime.tasks import Tasks
from gpu_agent.session.types import Connected, ConnectFailed, Disconnected, MessageReceived
from gpu_agent.wire.codec import FrameError, UnknownMessageError, decode_from_registry

LinkEvent = Connected | ConnectFailed | MessageReceived | Disconnected
Report = Callable[["Link", LinkEvent], Awaitable[None]]

SEND_SECONDS = 10.0
MAX_UNSENT = 64
"""Frames that may wait for a slow peer; a link with more is aborted."""

_LOG = Logger("node.link")


@dataclass(frozen=True, slots=True)
class _Close:
    code: int
    reason: str


class Link:
    """Opens at `start`; ends after `close`, or when the peer ends it."""

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

        `report` receives each event with its link, so that it can serve several links.
        """
        self._url = url
        self._token = token
        self._proxy = proxy
        self._security = security
        self._report = report
        self._outbox: asyncio.Queue[str | _Close] = asyncio.Queue(MAX_UNSENT)
        self._connection: ClientConnection | None = None
        self._closing = False
        self._log_limit = LogLimit()
        self._task: asyncio.Task[None]

    def start(self, tasks: Tasks) -> None:
        """Begin to connect; the first event is `Connected` or `ConnectFailed`."""
        self._task = tasks.start("link", self._run())

    def send(self, text: str) -> None:
        """Queue a frame. Never waits; a link whose peer reads nothing is aborted."""
        self._put(text)

    def close(self, code: int, reason: str) -> None:
        """Close after the queued frames, or stop connecting; no event is reported from now on."""
        if self._closing:
            return
        self._closing = True
        if self._connection is None:
            self._task.cancel()
        else:
            self._put(_Close(code, reason))

    async def ended(self, *, within_seconds: float) -> None:
        """Wait until the link has ended, at most for so long."""
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
            await self._emit(connection.failure)
            return
        self._connection = connection
        if self._token is not None and is_readable(self._url, connection.remote_address, self._proxy):
            _LOG.warning("token_sent_plaintext", registry=self._url)
        try:
            await self._emit(Connected())
            await self._emit(await self._exchange_frames(connection))
        finally:
            connection.transport.abort()  # closed already, unless this task was cancelled

    async def _exchange_frames(self, connection: ClientConnection) -> Disconnected:
        async with Tasks() as tasks:
            tasks.start("link-writer", self._write(connection))
            lost = await self._read(connection)
            tasks.end()
        return lost

    async def _read(self, connection: ClientConnection) -> Disconnected:
        try:
            while True:
                await self._receive(await connection.recv())
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

    async def _receive(self, frame: str | bytes) -> None:
        """Decode one frame; one that is no message is logged, and the link stays open."""
        if isinstance(frame, bytes):
            self._log_ignored("it is binary")
            return
        try:
            message = decode_from_registry(frame)
        except FrameError as error:
            self._log_ignored(str(error), newer_peer=isinstance(error, UnknownMessageError))
        else:
            await self._emit(MessageReceived(message))

    def _log_ignored(self, reason: str, *, newer_peer: bool = False) -> None:
        suppressed = self._log_limit.admit("frame_ignored", now=time.monotonic())
        if suppressed is not None:
            log = _LOG.info if newer_peer else _LOG.warning
            log("frame_ignored", reason=reason, **suppressed)

    async def _emit(self, event: LinkEvent) -> None:
        """Report an event; nothing more is read while the receiver is busy."""
        if not self._closing:
            await self._report(self, event)
