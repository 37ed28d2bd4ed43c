"""What request headers say: the bearer token, the trace, and whether `Host` and `Origin` name this registry.

Used by the nodes' port and by the operators' API. Never raises for what a peer sent.

A web page of any origin can make a browser connect to 127.0.0.1, and a page whose own name resolves to that
address (DNS rebinding) has the same origin as the registry. A browser names the page's origin (`Origin`); a
program need not. So a registry that requires no token checks both headers.

A request that one instance of a registry forwards to another has a mark (`forwarding_mark`), and is never
forwarded again. The mark names the client's address, which the log shows in place of the instance's. It is
believed only with the secret that the instances share: any client can send the header.
"""

import hmac
import re
from collections.abc import Callable, Collection, Sequence
from urllib.parse import urlsplit

from gpu_agent.runtime.address import Address

UNREADABLE = ""
"""Stands for a credential that cannot be read: no token is empty."""

FORWARDING_MARK = b"x-gpu-agent-forwarded"
"""The header of a forwarded request, in lower case as ASGI has it."""

MAY_ANSWER = "gpu_agent.may_answer"
"""Where an instance's requests have, in their scope, what says whether it still leads."""
FORWARDED = "gpu_agent.forwarded"
"""In the scope of a request whose `Host` another instance has checked."""

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})

_SCHEME = "bearer"
_MAX_TOKEN_LENGTH = 512
_TRACE_ID = re.compile(r"[!-~]{1,128}")
_TRACEPARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})(?P<trace>[0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?"
)
"""W3C Trace Context: version, trace, parent, flags; what later versions append is not ours to read."""


def bearer_token(authorizations: Sequence[str]) -> str | None:
    """Read the values of all `Authorization` headers; None without any, `UNREADABLE` for no token.

    Two headers are unreadable: it is not known which one was meant.
    """
    if not authorizations:
        return None
    if len(authorizations) > 1:
        return UNREADABLE
    scheme, _, token = authorizations[0].strip().replace("\t", " ").partition(" ")
    return plausible_token(token.strip()) if scheme.lower() == _SCHEME else UNREADABLE


def plausible_token(token: str) -> str:
    """Return what can be a token, or `UNREADABLE`."""
    fits = len(token) <= _MAX_TOKEN_LENGTH and token.isascii() and token.isprintable() and " " not in token
    return token if fits else UNREADABLE


def trace_id_of(values_of: Callable[[str], Sequence[str]]) -> str | None:
    """Return the trace that a request names: `traceparent`, else `X-Request-Id`.

    `values_of` returns the values of all headers of one name. A header that is malformed or sent twice names
    no trace; that is no reason to refuse a request.
    """
    parents = values_of("traceparent")
    if len(parents) == 1 and (parent := _TRACEPARENT.fullmatch(parents[0].strip())) is not None:
        return parent["trace"]
    requests = values_of("x-request-id")
    request_id = requests[0].strip() if len(requests) == 1 else ""
    return request_id if is_trace_id(request_id) else None


def is_trace_id(text: str) -> bool:
    """Whether a text can be a trace id: 1 to 128 printable characters of ASCII, no spaces."""
    return _TRACE_ID.fullmatch(text) is not None


def forwarding_mark(secret: str, client: str) -> bytes:
    """Write the value of `FORWARDING_MARK` for a client's address."""
    return f"{secret} {client}".encode("latin-1", "replace")


def forwarded_client(mark: bytes, secret: str) -> str | None:
    """Return the client's address in a mark; None where its sender does not have the secret."""
    shown, _, client = mark.partition(b" ")
    return (
        client.decode("latin-1") if hmac.compare_digest(shown, secret.encode("latin-1", "replace")) else None
    )


def host_names(address: Address) -> frozenset[str] | None:
    """Return the host names of a loopback listener; None for any other, whose names cannot all be known."""
    return frozenset({*LOOPBACK_NAMES, address.host.lower()}) if address.is_loopback else None


def names_this_host(host: str, names: Collection[str] | None) -> bool:
    """Whether a `Host` header names this registry."""
    return names is None or _host_name(host) in names


def is_same_origin(origin: str, host: str) -> bool:
    """Whether an `Origin` header names the same host and port as the `Host` header of its request."""
    try:
        return urlsplit(origin).netloc.lower() == host.lower()
    except ValueError:
        return False


def _host_name(host: str) -> str:
    """Return the name in a `Host` header, without port and brackets."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""
