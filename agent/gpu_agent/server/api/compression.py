"""Compresses large answers with gzip for clients that accept it: a list of 10,000 nodes shrinks tenfold.

Event streams and backups pass as they are. The first bytes of an answer are held back until it is clear that
it is large.
"""

import zlib

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SMALLEST_BYTES = 8 * 1024
"""Below this compression costs more than it saves."""

_LEVEL = 1
"""The fastest: the event loop waits for it."""
_GZIP_FORMAT = 31
_TYPES = ("application/json", "application/problem+json", "text/plain", "text/html")


class Compression:
    """An ASGI application whose large answers are compressed."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] == "http" and accepts_gzip(Headers(scope=scope).get("accept-encoding", "")):
            await self._app(scope, receive, _Compressor(send).send)
        else:
            await self._app(scope, receive, send)


def accepts_gzip(header: str) -> bool:
    """Whether an `Accept-Encoding` allows gzip (RFC 9110 §12.5.3): by name, else by `*`."""
    if "gzip" not in header.lower() and "*" not in header:
        return False
    qualities: dict[str, bool] = {}
    for one in header.lower().split(","):
        name, _, parameter = one.partition(";")
        quality = parameter.strip().removeprefix("q=")
        qualities[name.strip()] = not parameter or bool(quality.strip("0."))
    return qualities.get("gzip", qualities.get("*", False))


class _Compressor:
    """Sends one answer."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._start: Message | None = None
        """The head of an answer that may become large."""
        self._held = b""
        self._gzip: zlib._Compress | None = None

    async def send(self, message: Message) -> None:
        """Send a part of the answer, or hold it back."""
        if message["type"] == "http.response.start":
            if _compressible(message):
                self._start = message
                return
        elif self._start is not None:
            await self._begin(message, self._start)
            return
        elif self._gzip is not None:
            message = self._compressed(self._gzip, message)
        await self._send(message)

    async def _begin(self, message: Message, start: Message) -> None:
        self._held += message.get("body", b"")
        more = message.get("more_body", False)
        if more and len(self._held) < SMALLEST_BYTES:
            return
        whole: Message = {**message, "body": self._held}
        headers = MutableHeaders(raw=start["headers"])
        headers.add_vary_header("Accept-Encoding")
        if len(self._held) >= SMALLEST_BYTES:
            self._gzip = zlib.compressobj(_LEVEL, wbits=_GZIP_FORMAT)
            whole = self._compressed(self._gzip, whole)
            headers["Content-Encoding"] = "gzip"
            del headers["Content-Length"]
            if not more:
                headers["Content-Length"] = str(len(whole["body"]))
        self._start, self._held = None, b""
        await self._send(start)
        await self._send(whole)

    @staticmethod
    def _compressed(gzip: "zlib._Compress", message: Message) -> Message:
        body = gzip.compress(message.get("body", b""))
        if not message.get("more_body", False):
            body += gzip.flush()
        return {**message, "body": body}


def _compressible(start: Message) -> bool:
    headers = Headers(raw=start["headers"])
    kind = headers.get("content-type", "").partition(";")[0]
    return kind in _TYPES and "content-encoding" not in headers
