"""Opens a WebSocket to the registry, from the first packet to the end of its handshake, or says why not.

Every wait has a deadline. A token goes out only where it may: see `tls`. It follows no redirect to another
host and uses no proxy but the configured one. `Retry-After` of a refusal is parsed here; the session decides
how much of it to honour.
"""

import asyncio
import contextlib
import ssl
import time
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidMessage, InvalidStatus, InvalidURI, WebSocketException
from websockets.http11 import Response

from gpu_agent.node.connection.tls import (
    DEFAULT,
    TERMS,
    PlaintextError,
    Security,
    context_for,
    is_readable,
    refuse_plaintext,
    wants_tls,
)
from gpu_agent.records import dataclass
from gpu_agent.runtime.proxy import Proxy, authority, connect_tcp
from gpu_agent.runtime.tls.contexts import TlsFileError
from gpu_agent.runtime.tls.errors import TlsProblem, explain_tls_error
from gpu_agent.session.types import ConnectFailed
from gpu_agent.version import __version__
from gpu_agent.wire.codec import MAX_FRAME_BYTES

OPEN_SECONDS = 10.0
CLOSE_SECONDS = 2.0

_HANDSHAKE_ERRORS = (OSError, WebSocketException, ValueError, LookupError, TlsFileError, PlaintextError)
"""The errors of an attempt. websockets raises `ValueError` for a redirect elsewhere, and `LookupError` for a
header that must occur once and occurs twice."""
_OPERATOR_PORT_TYPE = "application/problem+json"
"""The content type of refusals on a registry's operator port, and of no other port."""
_MAX_TEXT = 300
_MAX_DIGITS = 9
_GOING_AWAY = 1001
_DATE_ERRORS = (ValueError, OverflowError, OSError, LookupError, TypeError)
"""What Python's parser and calendar raise for absurd dates."""


@dataclass(frozen=True, slots=True)
class HandshakeFailure:
    """Why there is no WebSocket."""

    failure: ConnectFailed
    date: str | None = None
    """The answer's `Date` header."""
    text: str = ""
    """The beginning of the answer's body."""
    tls_problem: TlsProblem | None = None
    """The fix, where TLS or plaintext is the problem."""


async def open_websocket(
    url: str, token: str | None, *, proxy: Proxy | None = None, security: Security = DEFAULT
) -> ClientConnection | HandshakeFailure:
    """Open a WebSocket; `token` goes into the handshake's Authorization header, and nowhere else."""
    try:
        async with asyncio.timeout(OPEN_SECONDS):
            return await _open(url, token, proxy=proxy, security=security)
    except _HANDSHAKE_ERRORS as error:
        if isinstance(error, InvalidStatus):
            return _refused(error.response, url)
        problem = _tls_problem(error, url)
        if problem is None:
            return HandshakeFailure(_failure(error, url))
        lasting = isinstance(error, TlsFileError | PlaintextError)
        return HandshakeFailure(ConnectFailed(str(problem), lasting=lasting), tls_problem=problem)


async def try_handshake(
    url: str, token: str | None, *, proxy: Proxy | None = None, security: Security = DEFAULT
) -> tuple[HandshakeFailure | None, str | None]:
    """Shake hands and disconnect at once; returns the failure, if any, and the answer's `Date` header."""
    connection = await open_websocket(url, token, proxy=proxy, security=security)
    if isinstance(connection, HandshakeFailure):
        return connection, connection.date
    try:
        dates = connection.response.headers.get_all("Date") if connection.response else []
        await connection.close(_GOING_AWAY, "checked whether this connection works")
    finally:
        connection.transport.abort()
    return None, next(iter(dates), None)


def retry_after_seconds(headers: Iterable[str], *, now: float) -> float | None:
    """Read the first valid `Retry-After`, in seconds from `now` (Unix time); None without one."""
    readings = (_seconds(one.strip(), now) for one in headers)
    return next((seconds for seconds in readings if seconds is not None), None)


class _Connection(ClientConnection):
    """A connection whose handshake fails with the peer's TLS error, where there was one."""

    _tls_error: ssl.SSLError | None = None

    def connection_lost(self, exc: Exception | None) -> None:
        """Store the TLS error: a peer that requires a client certificate says so after its handshake."""
        self._tls_error = exc if isinstance(exc, ssl.SSLError) else None
        super().connection_lost(exc)

    async def handshake(self, *given: Any, **named: Any) -> None:  # noqa: ANN401 - the library's own
        """Raise one of `_HANDSHAKE_ERRORS`."""
        try:
            await super().handshake(*given, **named)
        except InvalidMessage:
            if self._tls_error is not None:
                raise self._tls_error from None
            raise


async def _open(url: str, token: str | None, *, proxy: Proxy | None, security: Security) -> ClientConnection:
    """Raise one of `_HANDSHAKE_ERRORS`."""
    parts = urlsplit(url)
    context = await context_for(url, security)
    tcp = await connect_tcp(proxy, parts.hostname or "", parts.port or (80 if context is None else 443))
    with contextlib.ExitStack() as undo:
        undo.callback(tcp.close)
        if token is not None and is_readable(url, tcp.getpeername(), proxy):
            refuse_plaintext(url, security)
        connection = await connect(
            url,
            sock=tcp,
            ssl=context,
            create_connection=_Connection,
            additional_headers={"Authorization": f"Bearer {token}"} if token else None,
            user_agent_header=f"gpu-agent/{__version__}",
            proxy=None,  # `tcp` goes through it already
            compression=None,
            open_timeout=None,
            ping_interval=None,
            close_timeout=CLOSE_SECONDS,
            max_size=MAX_FRAME_BYTES,
            max_queue=1,
        )
        undo.pop_all()
    return connection


def _tls_problem(error: Exception, url: str) -> TlsProblem | None:
    """The problem with TLS, or with plaintext; None for another error."""
    if isinstance(error, TlsFileError | PlaintextError):
        return TlsProblem.of(str(error))
    parts = urlsplit(url)
    of_tls = (ssl.SSLError, ConnectionResetError) if parts.scheme == "wss" else ssl.SSLError
    if isinstance(error, of_tls):
        return explain_tls_error(error, parts.hostname or "", TERMS)
    return None


def _failure(error: Exception, url: str) -> ConnectFailed:
    if isinstance(error, TimeoutError):
        return ConnectFailed(str(error) or f"no WebSocket came up within {OPEN_SECONDS:g} s")
    if isinstance(error, OSError):
        parts = urlsplit(url)
        place = authority(parts.hostname or "", parts.port or (443 if parts.scheme == "wss" else 80))
        return ConnectFailed(f"the registry at {place} cannot be reached: {error.strerror or error}")
    if isinstance(error, InvalidURI) or "redirect" in str(error):
        return ConnectFailed(
            "what answers there redirects to another place, which no agent follows: name the registry's "
            "own URL"
        )
    return ConnectFailed(f"what answers there is no registry: {error}")


def _refused(response: Response, url: str) -> HandshakeFailure:
    """The failure of an HTTP answer."""
    text = (response.body or b"")[:_MAX_TEXT].decode("utf-8", "replace").strip()
    date = next(iter(response.headers.get_all("Date")), None)
    if wants_tls(url, response.status_code, response.body):
        encrypted = TlsProblem("that port is encrypted", "write wss:// in the registry's URL")
        return HandshakeFailure(ConnectFailed(str(encrypted)), date, text, encrypted)
    return HandshakeFailure(_of_status(response), date, text)


def _of_status(response: Response) -> ConnectFailed:
    if response.headers.get("Content-Type", "").startswith(_OPERATOR_PORT_TYPE):
        return ConnectFailed(
            "operators are served there, not nodes: name the registry's port for nodes, 8080 by default"
        )
    status = response.status_code
    seconds = retry_after_seconds(response.headers.get_all("Retry-After"), now=time.time())
    return ConnectFailed(
        f"the registry answered HTTP {status}", http_status=status, retry_after_seconds=seconds
    )


def _seconds(written: str, now: float) -> float | None:
    if written.isascii() and written.isdigit():
        return float(written[:_MAX_DIGITS])
    from email.utils import parsedate_to_datetime  # noqa: PLC0415 - most registries send seconds

    try:
        return max(0.0, parsedate_to_datetime(written).timestamp() - now)
    except _DATE_ERRORS:
        return None
