"""Whether a web page asks, and whose: none may use a person's browser on a registry that asks for no token.

A page of any origin can make a browser connect to 127.0.0.1, and one that rebinds its own name to that
address is of our origin, too. A browser says whose page asks (`Origin`), a program need not. Reads headers
only, and refuses nothing itself.
"""

from collections.abc import Collection
from urllib.parse import urlsplit

from gpu_agent.server.address import Address

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


def names_of(address: Address) -> frozenset[str] | None:
    """Return the names by which a listener may be called; None when nobody can know them all."""
    return frozenset({*LOOPBACK_NAMES, address.host.lower()}) if address.is_loopback else None


def is_called(host: str, names: Collection[str] | None) -> bool:
    """Say whether a `Host` header names us."""
    return names is None or _name(host) in names


def is_of(origin: str, host: str) -> bool:
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
