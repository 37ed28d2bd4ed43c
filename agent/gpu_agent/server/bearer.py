"""The token in `Authorization: Bearer TOKEN`, as nodes and operators present it.

Never raises for what a peer wrote: whatever cannot be one token is nobody's.
"""

from collections.abc import Sequence

UNREADABLE = ""
"""What stands for a credential that cannot be read: no token is empty."""

_SCHEME = "bearer"
_LONGEST_TOKEN = 512


def token_of(authorizations: Sequence[str]) -> str | None:
    """Read the values of all `Authorization` headers; None without any, `UNREADABLE` for what is no token.

    Two headers are no token: nobody can know which one was meant.
    """
    if not authorizations:
        return None
    if len(authorizations) > 1:
        return UNREADABLE
    scheme, _, token = authorizations[0].strip().replace("\t", " ").partition(" ")
    return plausible(token.strip()) if scheme.lower() == _SCHEME else UNREADABLE


def plausible(token: str) -> str:
    """Return what could be a token, or `UNREADABLE`."""
    fits = len(token) <= _LONGEST_TOKEN and token.isascii() and token.isprintable() and " " not in token
    return token if fits else UNREADABLE
