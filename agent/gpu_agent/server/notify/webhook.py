"""A message to a webhook: one POST on a connection of its own, and what the answer means.

An attempt ends within a deadline, whatever the other side does. Of an answer only its status counts. A
problem names the host and never the path of a URL, which may be a secret. Nor does it repeat what a receiver
wrote, which may hold that path.
"""

import asyncio
import hashlib
import hmac
import ssl
import time
from collections.abc import Mapping
from contextlib import suppress
from email.utils import parsedate_to_datetime
from functools import partial
from http import HTTPStatus
from urllib.parse import urlsplit

from gpu_agent.runtime.proxy import ProxyError, connect_tcp
from gpu_agent.runtime.tasks import in_thread
from gpu_agent.runtime.tls.errors import openssl_reason
from gpu_agent.server.http_connection import BrokenAnswerError, HttpConnection
from gpu_agent.server.notify.access import Access, UnusableError, check_encrypted, read_access
from gpu_agent.server.notify.command import DELIVERED, Outcome
from gpu_agent.server.notify.settings import ReceiverSettings
from gpu_agent.version import __version__

ATTEMPT_SECONDS = 10.0
"""From the connection to the status of the answer."""
SIGNATURE, DELIVERY = "X-Gpu-Agent-Signature", "X-Gpu-Agent-Delivery"

_READ_SECONDS = 5.0
_REST_SECONDS, _REST_BYTES = 1.0, 64 * 1024
"""How much of an answer's body is read, so that the other side sees its answer taken."""
_HTTP, _HTTPS = 80, 443
_TEMPORARY = frozenset({408, 425, 429})
"""Answers of 4xx after which the same message may be taken."""
_STEPS: Mapping[int, str] = {
    400: "it cannot read the message: check `format`",
    401: "it wants other credentials: check its URL, or `secret_file`",
    403: "it forbids the message: check its URL, or `secret_file`",
    404: "it does not know the URL: was the webhook removed there?",
    410: "the webhook was removed there: make another one",
}


async def post_message(
    receiver: ReceiverSettings, body: bytes, *, delivery_id: str, plaintext: bool = False
) -> Outcome:
    """Send a message; never raises for what a file, the network or the receiver does.

    With `plaintext` also to a URL on another machine that is not encrypted.
    """
    try:
        access = await _access(receiver)
        check_encrypted(access.url, plaintext=plaintext)
    except UnusableError as error:
        return Outcome(str(error), lasting=True)
    host = urlsplit(access.url).hostname or ""
    try:
        async with asyncio.timeout(ATTEMPT_SECONDS):
            return await _exchange(access, body, delivery_id=delivery_id)
    except TimeoutError:
        return Outcome(f"{host} did not answer within {ATTEMPT_SECONDS:g} s")
    except BrokenAnswerError as error:
        return Outcome(f"no answer of {host}: {error}")
    except ssl.SSLCertVerificationError as error:
        return Outcome(f"the certificate of {host} is not trusted ({error.verify_message}): check ca_file")
    except ssl.SSLError as error:
        return Outcome(f"no TLS with {host} ({openssl_reason(error)})")
    except ProxyError as error:
        return Outcome(str(error))
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        return Outcome(f"{host} is not reached ({reason})")


def signature(secret: bytes, body: bytes, *, at: int) -> str:
    """Sign a body with the Unix time in seconds: `t=TIME,v1=HMAC`, over the time, a point and the body."""
    signed = hmac.new(secret, b"%d.%b" % (at, body), hashlib.sha256).hexdigest()
    return f"t={at},v1={signed}"


async def _exchange(access: Access, body: bytes, *, delivery_id: str) -> Outcome:
    parts = urlsplit(access.url)
    host, port = parts.hostname or "", _HTTP if access.context is None else _HTTPS
    headers = {
        "Host": parts.netloc,
        "User-Agent": f"gpu-agent/{__version__}",
        "Content-Type": "application/json; charset=utf-8",
        "Content-Length": str(len(body)),
        "Connection": "close",
        DELIVERY: delivery_id,
    }
    if access.secret is not None:
        headers[SIGNATURE] = signature(access.secret, body, at=int(time.time()))
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    port = parts.port or port
    tunnel = None if access.proxy is None else await connect_tcp(access.proxy, host, port)
    connection = await HttpConnection.open(host, port, context=access.context, connected=tunnel)
    try:
        encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
        await connection.send(b"POST", target.encode(), encoded)
        await connection.write(body)
        connection.end_request()
        status, answered = await connection.head()
        with suppress(TimeoutError, BrokenAnswerError):
            async with asyncio.timeout(_REST_SECONDS):
                await _read_rest(connection)
    finally:
        connection.close()
    return _judge(status, dict(answered), host)


async def _read_rest(connection: HttpConnection) -> None:
    size = 0
    async for piece in connection.pieces():
        size += len(piece)
        if size > _REST_BYTES:
            return


def _judge(status: int, headers: Mapping[bytes, bytes], host: str) -> Outcome:
    family = status // 100
    if family == HTTPStatus.OK // 100:
        return DELIVERED
    pause = _retry_after(headers.get(b"retry-after", b"").decode("latin-1"))
    if family == HTTPStatus.MULTIPLE_CHOICES // 100:
        return Outcome(
            f"{host} answers HTTP {status} and names another address: write that one", lasting=True
        )
    lasting = family == HTTPStatus.BAD_REQUEST // 100 and status not in _TEMPORARY
    step = f": {_STEPS[status]}" if status in _STEPS else ""
    return Outcome(f"{host} answers HTTP {status}{step}", lasting, pause)


def _retry_after(value: str) -> float:
    """Read the header's seconds, or its date; 0 where it is neither."""
    text = value.strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return 0.0


async def _access(receiver: ReceiverSettings) -> Access:
    """Read the files that a webhook needs, as they are now; raises `UnusableError`."""
    try:
        return await in_thread("notify-files", partial(read_access, receiver), deadline_seconds=_READ_SECONDS)
    except TimeoutError:
        raise UnusableError("the disk with its files does not answer") from None
