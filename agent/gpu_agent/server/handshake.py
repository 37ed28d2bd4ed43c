"""A node's handshake: what it presents, and how it is refused (§2). Judges no credential.

Keeps what is presented to itself: a token in a URL is as secret as one in a header.
"""

import http
from dataclasses import dataclass, field
from urllib.parse import parse_qs

from gpu_agent.server.bearer import UNREADABLE, plausible, token_of

_MOST_QUERY_FIELDS = 32


@dataclass(frozen=True, slots=True)
class Handshake:
    """The request of a peer that wants to come in."""

    target: str = field(repr=False)
    """Path and query."""
    authorizations: tuple[str, ...] = field(default=(), repr=False)
    """The values of every `Authorization` header."""
    origins: tuple[str, ...] = ()
    """The values of every `Origin` header: whose web page asks, if one does."""
    host: str = field(default="", compare=False)
    """The `Host` header."""

    @property
    def path(self) -> str:
        """The path alone, which may be shown."""
        return self.target.partition("?")[0]

    @property
    def token(self) -> str | None:
        """The token that is presented: the header's, else the query's, an older node's only means.

        None when none is; `UNREADABLE` when what is presented can be nobody's token.
        """
        token = token_of(self.authorizations)
        return _in_query(self.target.partition("?")[2]) if token is None else token


@dataclass(frozen=True, slots=True)
class TurnedAway:
    """Why a handshake is refused."""

    status: http.HTTPStatus
    sentence: str
    retry_after_seconds: int | None = None


def _in_query(query: str) -> str | None:
    if "token=" not in query:
        return None
    try:
        found = parse_qs(query, keep_blank_values=True, max_num_fields=_MOST_QUERY_FIELDS).get("token", [])
    except ValueError:
        return UNREADABLE
    if not found:
        return None
    return plausible(found[0]) if len(found) == 1 else UNREADABLE
