"""Keeps web pages in an operator's browser from using the operator API behind the operator's back.

A page of another origin can make a browser send requests to 127.0.0.1, and by rebinding its
own name to that address can even read the answers. So a request must name a host that is
ours, must not come from a foreign origin, and must carry JSON where it carries anything; and
no more of it than a request can need. Checks no credentials.
"""

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from gpu_agent.server.web_pages import is_called, is_of

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Refuse = Callable[[int, str, str], App]
"""Makes the answer to a refused request from a status, a code and a sentence."""

MAX_BODY_BYTES = 1024 * 1024
"""Far more than the largest job's demands; a longer body is not even read to its end."""
MOST_HELD_BYTES = 32 * 1024 * 1024
"""Of all bodies together, from their first byte until they are answered."""

_READING = frozenset({"GET", "HEAD", "OPTIONS"})


class Guard:
    """Stands before an ASGI application."""

    def __init__(
        self, app: App, *, hosts: Iterable[str] | None, refuse: Refuse, takes: Callable[[Scope], bool]
    ) -> None:
        self._app = app
        self._takes = takes
        """Says whether anything takes a request; what nothing takes does no harm, whatever it carries."""
        self._hosts = None if hosts is None else frozenset(host.lower() for host in hosts)
        """Names under which we may be called; None when nobody can know them all."""
        self._refuse = refuse
        self._held_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif (refusal := self._refusal(scope)) is not None:
            await refusal(scope, receive, send)
        else:
            await self._hold(scope, receive, send)

    async def _hold(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read a body to its end and hand it on, unless it is too long, or all bodies together are."""
        body = bytearray()
        try:
            while True:
                message = await receive()
                part = message.get("body", b"")
                body += part
                self._held_bytes += len(part)
                refusal = self._too_much(len(body))
                if message["type"] != "http.request" or refusal is not None:
                    break
                if not message.get("more_body", False):
                    await self._app(scope, _replaying(bytes(body), receive), send)
                    return
            if refusal is not None:  # else its sender left in the middle
                await refusal(scope, receive, send)
        finally:
            self._held_bytes -= len(body)

    def _too_much(self, length: int) -> App | None:
        if length > MAX_BODY_BYTES:
            return self._refuse(413, "BODY_TOO_LARGE", f"a request is at most {MAX_BODY_BYTES} bytes long")
        if self._held_bytes > MOST_HELD_BYTES:
            return self._refuse(
                413, "BODIES_TOO_LARGE", "too many long requests come at a time: ask again in a moment"
            )
        return None

    def _refusal(self, scope: Scope) -> App | None:
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get(b"host", "")
        if not is_called(host, self._hosts):
            return self._refuse(
                403,
                "HOST_NOT_ALLOWED",
                f"this registry is not called {host!r}: use the address it listens on",
            )
        origin = headers.get(b"origin")
        if origin is not None and not is_of(origin, host):
            return self._refuse(
                403, "ORIGIN_NOT_ALLOWED", f"pages of {origin!r} may not use this API: use it from a program"
            )
        has_body = headers.get(b"content-length", "0") != "0" or b"transfer-encoding" in headers
        if scope["method"] in _READING or not (has_body or scope["method"] == "POST"):
            return None
        kind = headers.get(b"content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json" and self._takes(scope):
            return self._refuse(
                415, "JSON_REQUIRED", "send the request with the header `Content-Type: application/json`"
            )
        return None


def _replaying(body: bytes, receive: Receive) -> Receive:
    """Hand a body on that was read already, then whatever comes after it."""
    waiting = [body]

    async def replay() -> MutableMapping[str, Any]:
        if waiting:
            return {"type": "http.request", "body": waiting.pop(), "more_body": False}
        return await receive()

    return replay
