"""Authenticates a node's handshake (§2): which credential it presents, and why it is refused.

Every refusal names the next step and repeats nothing of what was presented.
"""

import http
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum

from gpu_agent.server.http_headers import is_same_origin, names_this_host
from gpu_agent.server.limits import Limits, MessageQuotas
from gpu_agent.server.message_handler import Peer
from gpu_agent.server.node_connection import NodeConnection
from gpu_agent.server.tokens import TokenService, presented_digest
from gpu_agent.server.websocket import Handshake, HandshakeRefusal


class RefusalReason(StrEnum):
    """Why a handshake is refused, as metrics count it."""

    MISSING = "no_token"
    UNKNOWN = "unknown_token"
    OF_AN_OPERATOR = "operator_token"
    USED_UP = "token_used_up"
    WEB_PAGE = "web_page"


_REFUSALS: Mapping[RefusalReason, HandshakeRefusal] = {
    RefusalReason.MISSING: HandshakeRefusal(
        http.HTTPStatus.UNAUTHORIZED,
        "This registry requires a token: ask its operator to create a join token with "
        "`gpu-agent registry token create`, and give the agent its file with --join-token-file.",
    ),
    RefusalReason.UNKNOWN: HandshakeRefusal(
        http.HTTPStatus.UNAUTHORIZED,
        "This registry does not know that token, or no longer: ask its operator for a new join token.",
    ),
    RefusalReason.OF_AN_OPERATOR: HandshakeRefusal(
        http.HTTPStatus.FORBIDDEN,
        "That token is an operator's and registers no node: give the agent a join token.",
    ),
    RefusalReason.USED_UP: HandshakeRefusal(
        http.HTTPStatus.FORBIDDEN,
        "That join token is used up: ask the registry's operator for another.",
    ),
    RefusalReason.WEB_PAGE: HandshakeRefusal(
        http.HTTPStatus.FORBIDDEN,
        "Web pages register no nodes here: run the agent, which is no browser.",
    ),
}


@dataclass(frozen=True, slots=True)
class Presented:
    """What a handshake presents; a token only as its digest, so that it may cross a link."""

    token_digest: str | None
    """None without a token; empty for what cannot be one."""
    origins: tuple[str, ...] = ()
    """The values of all `Origin` headers."""
    host: str = ""
    """The `Host` header."""

    @classmethod
    def by(cls, handshake: Handshake) -> "Presented":
        """Read a handshake."""
        token = handshake.token
        digest = None if token is None else presented_digest(token)
        return cls(digest, handshake.origins, handshake.host)


class NodeAuth:
    """Authenticates handshakes. Without tokens, as with auth off, it accepts every peer but a web page.

    A person who runs a browser beside such a registry did not ask for a node.
    """

    def __init__(
        self,
        tokens: TokenService | None,
        *,
        host_names: Collection[str] | None = None,
        limits: Limits | None = None,
    ) -> None:
        self._tokens = tokens
        self._quotas = MessageQuotas(limits or Limits())
        self._host_names = host_names
        """The names that a `Host` header may use; None where they cannot all be known."""
        self.refusals: Counter[RefusalReason] = Counter(dict.fromkeys(RefusalReason, 0))
        """Refused handshakes since the start."""

    def authenticate(self, connection: NodeConnection, handshake: Handshake) -> HandshakeRefusal | None:
        """Return why a handshake is refused; None where the connection now has its credential and quota."""
        return self.check(connection, Presented.by(handshake))

    def check(self, peer: Peer, presented: "Presented") -> HandshakeRefusal | None:
        """Do as `authenticate` does, by what a handshake presents."""
        reason = self._admit(peer, presented)
        if reason is None:
            return None
        self.refusals[reason] += 1
        return _REFUSALS[reason]

    def _admit(self, peer: Peer, presented: "Presented") -> RefusalReason | None:
        if self._tokens is None:
            return RefusalReason.WEB_PAGE if self._is_foreign_page(presented) else None
        if presented.token_digest is None:
            return RefusalReason.MISSING
        credential = self._tokens.credential(presented.token_digest)
        if credential is None:
            return RefusalReason.UNKNOWN
        if credential.role is not None:  # an operator's, or a session of the fleet page
            return RefusalReason.OF_AN_OPERATOR
        if self._tokens.is_used_up(credential):
            return RefusalReason.USED_UP
        peer.credential = credential
        peer.quota = self._quotas.bucket(credential, uses=self._tokens.max_uses(credential)) or peer.quota
        return None

    def _is_foreign_page(self, presented: "Presented") -> bool:
        host = presented.host
        return bool(presented.origins) and not (
            names_this_host(host, self._host_names)
            and all(is_same_origin(origin, host) for origin in presented.origins)
        )
