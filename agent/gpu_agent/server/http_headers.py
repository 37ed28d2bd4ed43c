"""What request headers say: the bearer token, and whether `Host` and `Origin` name this registry.

Shared by the nodes' port and the operators' API. Never raises for what a peer sent.
"""

from collections.abc import Collection, Sequence
from urllib.parse import urlsplit

from gpu_agent.server.address import Address

# The token in `Authorization: Bearer TOKEN`, as nodes and operators present it.
#
# Never raises for what a peer wrote: whatever cannot be one token is nobody's.


UNREADABLE = ""
"""What stands for a credential that cannot be read: no token is empty."""

_SCHEME = "bearer"
_LONGEST_TOKEN = 512


def bearer_token(authorizations: Sequence[str]) -> str | None:
    """Read the values of all `Authorization` headers; None without any, `UNREADABLE` for what is no token.

    Two headers are no token: nobody can know which one was meant.
    """
    if not authorizations:
        return None
    if len(authorizations) > 1:
        return UNREADABLE
    scheme, _, token = authorizations[0].strip().replace("\t", " ").partition(" ")
    return plausible_token(token.strip()) if scheme.lower() == _SCHEME else UNREADABLE


def plausible_token(token: str) -> str:
    """Return what could be a token, or `UNREADABLE`."""
    fits = len(token) <= _LONGEST_TOKEN and token.isascii() and token.isprintable() and " " not in token
    return token if fits else UNREADABLE


# Whether a web page asks, and whose: none may use a person's browser on a registry that asks for no token.
#
# A page of any origin can make a browser connect to 127.0.0.1, and one that rebinds its own name to that
# address is of our origin, too. A browser says whose page asks (`Origin`), a program need not. Reads
# headers
# only, and refuses nothing itself.


LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


def host_names(address: Address) -> frozenset[str] | None:
    """Return the names by which a listener may be called; None when nobody can know them all."""
    return frozenset({*LOOPBACK_NAMES, address.host.lower()}) if address.is_loopback else None


def names_this_host(host: str, names: Collection[str] | None) -> bool:
    """Say whether a `Host` header names us."""
    return names is None or _name(host) in names


def is_same_origin(origin: str, host: str) -> bool:
    """Say whether an `Origin` header names the place that the `Host` header of the same request does."""
    try:
        return urlsplit(origin).netloc.lower() == host.lower()
    except ValueError:
        return False


def _name(host: str) -> str:
    """The name in a `Host` header, without port and brackets."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""
