"""What request headers say: the bearer token, and whether `Host` and `Origin` name this registry.

Used by the nodes' port and by the operators' API. Never raises for what a peer sent.

A web page of any origin can make a browser connect to 127.0.0.1, and a page whose own name resolves to that
address (DNS rebinding) has the same origin as the registry. A browser names the page's origin (`Origin`); a
program need not. So a registry that requires no token checks both headers.
"""

from collections.abc import Collection, Sequence
from urllib.parse import urlsplit

from gpu_agent.server.address import Address

UNREADABLE = ""
"""Stands for a credential that cannot be read: no token is empty."""

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})

_SCHEME = "bearer"
_MAX_TOKEN_LENGTH = 512


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
