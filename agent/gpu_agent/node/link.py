"""One WebSocket to the registry, from the first packet to the last: frames in and out, never a hang.

What happens on it is reported as the session's events; after `close` nothing is reported any more.
Everything that waits for the network has a deadline. It decides nothing: when to connect, with which
credential and what to say is the session's. Follows no redirect, and uses no proxy but the
one that it is given.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException

from gpu_agent.node.proxy import Proxy, reach_by
from gpu_agent.node.repeats import Repeats
from gpu_agent.node.retry_after import retry_after_seconds
from gpu_agent.runtime.logs import EventLog
from gpu_agent.runtime.tasks import Tasks
from gpu_agent.session.events import Connected, ConnectFailed, Disconnected, MessageReceived
from gpu_agent.version import __version__
from gpu_agent.wire.codec import MAX_FRAME_BYTES, FrameError, UnknownMessageError, decode_from_registry

LinkEvent = Connected | ConnectFailed | MessageReceived | Disconnected
Report = Callable[["Link", LinkEvent], Awaitable[None]]

OPEN_SECONDS = 10.0
SEND_SECONDS = 10.0
CLOSE_SECONDS = 2.0
MOST_UNSENT = 64
"""Frames that may wait for a slow peer before it is given up."""

_NO_WEBSOCKET = (OSError, WebSocketException, ValueError, LookupError)
"""What an attempt fails with. websockets lets `ValueError` through for a redirect elsewhere, and
`LookupError` for a header that it wants once and finds twice."""
_OPERATORS_REFUSALS = "application/problem+json"
"""The type in which a registry refuses on its operators' port, and nowhere else."""
_GOING_AWAY = 1001
_MOST_WORDS = 300
_LOG = EventLog("node.link")


@dataclass(frozen=True, slots=True)
class _Farewell:
    code: int
    reason: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a handshake alone."""

    failure: ConnectFailed | None
    """None: let in."""
    date: str | None = None
    """The answer's `Date` header."""
    words: str = ""
    """What a refusal said of itself."""


async def knock(url: str, token: str | None, *, proxy: Proxy | None = None) -> Answer:
    """Shake hands and leave at once, without a word of the protocol: to find out what a link would meet."""
    try:
        async with asyncio.timeout(OPEN_SECONDS):
            connection = await _opened(url, token, proxy)
    except _NO_WEBSOCKET as error:
        if not isinstance(error, InvalidStatus):
            return Answer(_failure(error))
        response = error.response
        words = (response.body or b"")[:_MOST_WORDS].decode("utf-8", "replace").strip()
        return Answer(_failure(error), next(iter(response.headers.get_all("Date")), None), words)
    try:
        date = connection.response.headers.get_all("Date") if connection.response else []
        await connection.close(_GOING_AWAY, "looked whether this way is open")
    finally:
        connection.transport.abort()
    return Answer(None, next(iter(date), None))


class Link:
    """Opens at `start`; told to `send` and to `close`; ends by itself when the peer does."""

    def __init__(self, url: str, *, token: str | None, report: Report, proxy: Proxy | None = None) -> None:
        """`token` goes into the handshake's Authorization header, and nowhere else.

        A listener that gets events of several links tells them apart by the link.
        """
        self._url = url
        self._token = token
        self._proxy = proxy
        self._report = report
        self._outbox: asyncio.Queue[str | _Farewell] = asyncio.Queue(MOST_UNSENT)
        self._connection: ClientConnection | None = None
        self._closing = False
        self._repeats = Repeats()
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
            self._put(_Farewell(code, reason))

    async def ended(self, *, within_seconds: float) -> None:
        """Wait for the last packet, but not for longer."""
        await asyncio.wait({self._task}, timeout=within_seconds)

    def _put(self, out: str | _Farewell) -> None:
        try:
            self._outbox.put_nowait(out)
        except asyncio.QueueFull:
            if self._connection is not None:
                self._connection.transport.abort()

    async def _run(self) -> None:
        try:
            async with asyncio.timeout(OPEN_SECONDS):
                self._connection = connection = await _opened(self._url, self._token, self._proxy)
        except _NO_WEBSOCKET as error:
            await self._tell(_failure(error))
            return
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
                    if isinstance(out, _Farewell):
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


async def _opened(url: str, token: str | None, proxy: Proxy | None) -> ClientConnection:
    """Raises what `_NO_WEBSOCKET` names."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "wss" else 80)
    opened = await reach_by(proxy, parts.hostname or "", port)
    with contextlib.ExitStack() as undo:
        undo.callback(opened.close)
        connection = await connect(
            url,
            sock=opened,
            additional_headers={"Authorization": f"Bearer {token}"} if token else None,
            user_agent_header=f"gpu-agent/{__version__}",
            proxy=None,  # the way is open already
            compression=None,
            open_timeout=None,
            ping_interval=None,
            close_timeout=CLOSE_SECONDS,
            max_size=MAX_FRAME_BYTES,
            max_queue=1,
        )
        undo.pop_all()
    return connection


def _failure(error: Exception) -> ConnectFailed:
    if isinstance(error, InvalidStatus):
        if error.response.headers.get("Content-Type", "").startswith(_OPERATORS_REFUSALS):
            return ConnectFailed("operators are served there, not nodes: name the registry's port for nodes")
        status = error.response.status_code
        return ConnectFailed(
            f"the registry answered HTTP {status}",
            http_status=status,
            retry_after_seconds=retry_after_seconds(
                error.response.headers.get_all("Retry-After"), now=time.time()
            ),
        )
    if isinstance(error, TimeoutError):
        return ConnectFailed(str(error) or f"no WebSocket came up within {OPEN_SECONDS:g} s")
    if isinstance(error, OSError):
        return ConnectFailed(f"the registry cannot be reached: {error.strerror or error}")
    return ConnectFailed(f"what answers there is no registry: {error}")
