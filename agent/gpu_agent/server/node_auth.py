"""Authenticates a node's handshake (§2): which credential it presents, and why it is refused.

Every refusal names the next step and repeats nothing of what was presented.
"""

import http
from collections.abc import Collection
from typing import Protocol

from gpu_agent.registry.credentials import Credential, CredentialKind
from gpu_agent.server.http_headers import is_same_origin, names_this_host
from gpu_agent.server.limits import Limits, MessageQuotas
from gpu_agent.server.node_connection import NodeConnection
from gpu_agent.server.websocket import Handshake, HandshakeRefusal

_NONE = HandshakeRefusal(
    http.HTTPStatus.UNAUTHORIZED,
    "This registry asks for a token: have its operator make a join token with "
    "`gpu-agent registry token create`, and give the agent its file with --join-token-file.",
)
_UNKNOWN = HandshakeRefusal(
    http.HTTPStatus.UNAUTHORIZED,
    "This registry does not know that token, or no longer: ask its operator for a new join token.",
)
_OPERATORS = HandshakeRefusal(
    http.HTTPStatus.FORBIDDEN,
    "That token is an operator's and registers no node: give the agent a join token.",
)
_SPENT = HandshakeRefusal(
    http.HTTPStatus.FORBIDDEN,
    "That join token is used up: ask the registry's operator for another.",
)
_PAGE = HandshakeRefusal(
    http.HTTPStatus.FORBIDDEN,
    "Web pages register no nodes here: run the agent, which is no browser.",
)


class Desk(Protocol):
    """Where presented tokens are recognised."""

    def authenticate(self, text: str) -> Credential | None:
        """Say what a token stands for now; None when it opens nothing."""

    def is_used_up(self, credential: Credential) -> bool:
        """Say whether as many nodes have joined by this token as may."""

    def uses_of(self, credential: Credential) -> int | None:
        """Return how many nodes may join by this token; None for any number, and for a node's own."""


class NodeAuth:
    """Judges handshakes; without a desk, as with auth off, everybody comes in and brings nothing.

    Everybody but a web page, that is: who runs a browser beside such a registry did not ask for a node.
    """

    def __init__(
        self, desk: Desk | None, *, names: Collection[str] | None = None, limits: Limits | None = None
    ) -> None:
        self._desk = desk
        self._rations = MessageQuotas(limits or Limits())
        self._names = names
        """Names under which we may be called; None when nobody can know them all."""

    def judge(self, connection: NodeConnection, handshake: Handshake) -> HandshakeRefusal | None:
        """Say why a peer may not come in; when it may, its connection carries its credential and ration."""
        if self._desk is None:
            return _PAGE if self._is_page_elsewhere(handshake) else None
        token = handshake.token
        if token is None:
            return _NONE
        credential = self._desk.authenticate(token)
        if credential is None:
            return _UNKNOWN
        if credential.kind is CredentialKind.OPERATOR:
            return _OPERATORS
        if self._desk.is_used_up(credential):
            return _SPENT
        connection.credential = credential
        ration = self._rations.of(credential, uses=self._desk.uses_of(credential))
        connection.errands = ration or connection.errands
        return None

    def _is_page_elsewhere(self, handshake: Handshake) -> bool:
        host = handshake.host
        return bool(handshake.origins) and not (
            names_this_host(host, self._names)
            and all(is_same_origin(origin, host) for origin in handshake.origins)
        )
