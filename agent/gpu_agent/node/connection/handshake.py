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
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidMessage, InvalidStatus, InvalidURI, WebSocketException
from websockets.http11 import Response

from gpu_agent.node.connection.proxy import Proxy, connect_tcp
from gpu_agent.node.connection.tls import (
    DEFAULT,
    TERMS,
    ClearTextError,
    Security,
    context_for,
    in_the_clear,
    refuse_clear_text,
    wants_tls,
)
from gpu_agent.runtime.tls.contexts import TlsFileError
from gpu_agent.runtime.tls.errors import TlsProblem, explain_tls_error
from gpu_agent.session.types import ConnectFailed
from gpu_agent.version import __version__
from gpu_agent.wire.codec import MAX_FRAME_BYTES

# A WebSocket to the registry from the first packet to the end of its handshake, or why there is none.
#
# Everything that waits has a deadline. A token goes out only where it may: see `tls`. It follows no
# redirect
# to another place, uses no proxy but the one that it is given, and says nothing of the protocol.


OPEN_SECONDS = 10.0
CLOSE_SECONDS = 2.0

_HANDSHAKE_ERRORS = (OSError, WebSocketException, ValueError, LookupError, TlsFileError, ClearTextError)
"""What an attempt fails with. websockets lets `ValueError` through for a redirect elsewhere, and
`LookupError` for a header that it wants once and finds twice."""
_OPERATORS_REFUSALS = "application/problem+json"
"""The type in which a registry refuses on its operators' port, and nowhere else."""
_MOST_WORDS = 300


@dataclass(frozen=True, slots=True)
class HandshakeFailure:
    """Why there is no WebSocket."""

    failure: ConnectFailed
    date: str | None = None
    """The answer's `Date` header."""
    words: str = ""
    """What the answer said of itself."""
    trouble: TlsProblem | None = None
    """What to mend, where it is of TLS or of what may be sent in the clear."""


async def open_websocket(
    url: str, token: str | None, *, proxy: Proxy | None = None, security: Security = DEFAULT
) -> ClientConnection | HandshakeFailure:
    """Open one; `token` goes into the handshake's Authorization header, and nowhere else."""
    try:
        async with asyncio.timeout(OPEN_SECONDS):
            return await _open(url, token, proxy=proxy, security=security)
    except _HANDSHAKE_ERRORS as error:
        if isinstance(error, InvalidStatus):
            return _refused(error.response, url)
        trouble = _trouble(error, url)
        if trouble is None:
            return HandshakeFailure(_failure(error))
        lasting = isinstance(error, TlsFileError | ClearTextError)
        return HandshakeFailure(ConnectFailed(str(trouble), lasting=lasting), trouble=trouble)


class _Connection(ClientConnection):
    """One whose end in the middle of a handshake is told as TLS's own refusal, where it is one."""

    _refusal: ssl.SSLError | None = None

    def connection_lost(self, exc: Exception | None) -> None:
        """Keep what TLS says: a peer that wants a certificate of ours says so after its handshake."""
        self._refusal = exc if isinstance(exc, ssl.SSLError) else None
        super().connection_lost(exc)

    async def handshake(self, *given: Any, **named: Any) -> None:  # noqa: ANN401 - the library's own
        """Raise what `_NO_WEBSOCKET` names."""
        try:
            await super().handshake(*given, **named)
        except InvalidMessage:
            if self._refusal is not None:
                raise self._refusal from None
            raise


async def _open(url: str, token: str | None, *, proxy: Proxy | None, security: Security) -> ClientConnection:
    """Raises what `_NO_WEBSOCKET` names."""
    parts = urlsplit(url)
    context = await context_for(url, security)
    way = await connect_tcp(proxy, parts.hostname or "", parts.port or (80 if context is None else 443))
    with contextlib.ExitStack() as undo:
        undo.callback(way.close)
        if token is not None and in_the_clear(url, way.getpeername(), proxy):
            refuse_clear_text(url, security)
        connection = await connect(
            url,
            sock=way,
            ssl=context,
            create_connection=_Connection,
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


def _trouble(error: Exception, url: str) -> TlsProblem | None:
    """What keeps a way from being safe, if that is what is wrong."""
    if isinstance(error, TlsFileError | ClearTextError):
        return TlsProblem.of(str(error))
    parts = urlsplit(url)
    of_tls = (ssl.SSLError, ConnectionResetError) if parts.scheme == "wss" else ssl.SSLError
    if isinstance(error, of_tls):
        return explain_tls_error(error, parts.hostname or "", TERMS)
    return None


def _failure(error: Exception) -> ConnectFailed:
    if isinstance(error, TimeoutError):
        return ConnectFailed(str(error) or f"no WebSocket came up within {OPEN_SECONDS:g} s")
    if isinstance(error, OSError):
        return ConnectFailed(f"the registry cannot be reached: {error.strerror or error}")
    if isinstance(error, InvalidURI) or "redirect" in str(error):
        return ConnectFailed(
            "what answers there sends agents to another place, where none goes: name the registry's own URL"
        )
    return ConnectFailed(f"what answers there is no registry: {error}")


def _refused(response: Response, url: str) -> HandshakeFailure:
    """What an HTTP status says."""
    words = (response.body or b"")[:_MOST_WORDS].decode("utf-8", "replace").strip()
    date = next(iter(response.headers.get_all("Date")), None)
    if wants_tls(url, response.status_code, response.body):
        encrypted = TlsProblem("that port is encrypted", "write wss:// in the registry's URL")
        return HandshakeFailure(ConnectFailed(str(encrypted)), date, words, encrypted)
    return HandshakeFailure(_of_status(response), date, words)


def _of_status(response: Response) -> ConnectFailed:
    if response.headers.get("Content-Type", "").startswith(_OPERATORS_REFUSALS):
        return ConnectFailed("operators are served there, not nodes: name the registry's port for nodes")
    status = response.status_code
    again = retry_after_seconds(response.headers.get_all("Retry-After"), now=time.time())
    return ConnectFailed(
        f"the registry answered HTTP {status}", http_status=status, retry_after_seconds=again
    )


# `Retry-After` of an HTTP answer: how long a peer asks to be left alone.
#
# Whatever a peer or a proxy writes, it is never the cause of an exception. Bounds nothing: how much of
# it is heeded is the session's to decide.


_MOST_DIGITS = 9
_NO_DATE = (ValueError, OverflowError, OSError, LookupError, TypeError)
"""What the parser and the calendar of Python raise for absurd dates."""


def retry_after_seconds(written: Iterable[str], *, now: float) -> float | None:
    """Read the first header that makes sense, in seconds from `now` (Unix time); None without one."""
    readings = (_seconds(one.strip(), now) for one in written)
    return next((seconds for seconds in readings if seconds is not None), None)


def _seconds(written: str, now: float) -> float | None:
    if written.isascii() and written.isdigit():
        return float(written[:_MOST_DIGITS])
    try:
        return max(0.0, parsedate_to_datetime(written).timestamp() - now)
    except _NO_DATE:
        return None
