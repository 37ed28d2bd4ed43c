"""Paths read exactly: what is one part of a path for the caller is one part for us, whatever it holds.

A job's id may hold slashes, percent signs or line ends, which are percent-encoded in a path. A
server that decodes before it routes cannot tell them from its own. So a path is brought to
one spelling, routed as it stands, and each part is decoded when it is handed over. Knows no route.
"""

from typing import Annotated
from urllib.parse import quote, unquote, unquote_to_bytes

from fastapi import Path
from pydantic import BeforeValidator

from gpu_agent.server.operator.guard import App, Receive, Refuse, Scope, Send

_PLAIN = "!$&'()*+,;=:@"
"""What may stand in a part of a path as it is (RFC 3986), besides letters, digits and `-._~`."""


def _decoded(part: object) -> object:
    return unquote(part) if isinstance(part, str) else part


NodeId = Annotated[
    str, BeforeValidator(_decoded), Path(min_length=1, max_length=128, description="A node's id.")
]
JobId = Annotated[
    str,
    BeforeValidator(_decoded),
    Path(min_length=1, max_length=256, description="A job's id, percent-encoded: a slash in it is `%2F`."),
]
TokenId = Annotated[
    str,
    BeforeValidator(_decoded),
    Path(min_length=1, max_length=64, description="The id in a token's text, between its underscores."),
]


class ExactPaths:
    """Stands before an ASGI application and gives it paths in one spelling."""

    def __init__(self, app: App, *, refuse: Refuse) -> None:
        self._app = app
        self._refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand a request on, or refuse a path that is no text."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            path = spelled(scope["raw_path"])
        except UnicodeDecodeError:
            refusal = self._refuse(400, "INVALID_PATH", "the path is not percent-encoded UTF-8: encode it so")
            await refusal(scope, receive, send)
        else:
            await self._app({**scope, "path": path}, receive, send)


def spelled(raw_path: bytes) -> str:
    """Spell a path in the one way in which routes are; raises `UnicodeDecodeError` for what is no text.

    Each part stays one part: `%6E` becomes `n`, while `%2F` and `%25` stay.
    """
    return "/".join(
        quote(unquote_to_bytes(part).decode("utf-8"), safe=_PLAIN) for part in raw_path.split(b"/")
    )
