"""The trace that an HTTP request belongs to, as its caller names it: `traceparent`, else `X-Request-Id`.

A header that is malformed, or there twice, names none: it is no reason to refuse a request. Answers nothing.
"""

import re
from collections.abc import Iterable

from gpu_agent.server.operator.guard import App, Receive, Scope, Send
from gpu_agent.server.tracing import caused_by, is_trace_id

_TRACEPARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})(?P<trace>[0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?"
)
"""W3C Trace Context: version, trace, parent, flags; what later versions append is not ours to read."""


class Tracing:
    """Stands before an ASGI application, which asks within the caller's trace."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand a request on."""
        with caused_by(trace_id_of(scope["headers"]) if scope["type"] == "http" else None):
            await self._app(scope, receive, send)


def trace_id_of(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """Return the trace that a request's headers name."""
    told = [(name.lower(), value.decode("latin-1").strip()) for name, value in headers]
    parents = [value for name, value in told if name == b"traceparent"]
    if len(parents) == 1 and (parent := _TRACEPARENT.fullmatch(parents[0])) is not None:
        return parent["trace"]
    requests = [value for name, value in told if name == b"x-request-id"]
    return requests[0] if len(requests) == 1 and is_trace_id(requests[0]) else None
