"""Which id a registration gets, and why it may not have the one it suggests (R-06, §2, §4 Connections).

Decides from what its connection presented and what is known of the id; binds nothing. What was
presented is looked at again: since the handshake it may have been revoked, used up or replaced.
"""

from typing import assert_never

from gpu_agent.registry.credentials import Credential, CredentialKind
from gpu_agent.registry.events import RegistrationArrived
from gpu_agent.registry.joining import has_room, holds_place
from gpu_agent.registry.record import NodeRecord
from gpu_agent.registry.roster import Roster
from gpu_agent.registry.tokens import Token, Tokens, TokenState
from gpu_agent.wire.codes import ErrorCode, NodeStatus
from gpu_agent.wire.messages import NodeError

_MINUTE = 60
_HOUR = 3600


class Identities:
    """Who may be which node."""

    def __init__(self, roster: Roster, tokens: Tokens, *, auth_off: bool) -> None:
        self._roster = roster
        self._tokens = tokens
        self._auth_off = auth_off

    def decide(self, event: RegistrationArrived, now: float) -> str | NodeError:
        """Return the id that the registration gets, or the refusal."""
        current = self._roster.bound.get(event.connection)
        if current is not None:
            return _only(current.node_id, event, because="this connection registered")
        if self._auth_off:
            return self._free_or_fresh(event, now)
        credential = event.credential
        if credential is None:
            return _unauthorized(event, "this registry asks for a token: connect with a join token")
        match credential.kind:
            case CredentialKind.NODE:
                return self._proven(event, credential)
            case CredentialKind.JOIN:
                return self._joining(event, credential, now)
            case CredentialKind.OPERATOR:
                return _forbidden(event, "an operator's token registers no node: connect with a join token")
            case _ as unreachable:
                assert_never(unreachable)

    def _proven(self, event: RegistrationArrived, credential: Credential) -> str | NodeError:
        record = self._roster.records.get(credential.node_id or "")
        if record is None or not record.keys.has(credential.token_id):
            return _unauthorized(
                event, "this node token proves nothing any more: connect again with a join token"
            )
        return _only(record.node_id, event, because="this node token is that of")

    def _joining(self, event: RegistrationArrived, credential: Credential, now: float) -> str | NodeError:
        token = self._tokens.by_id.get(credential.token_id)
        if token is None or token.state(now) in (TokenState.EXPIRED, TokenState.REVOKED):
            state = "is no longer known" if token is None else f"is {token.state(now)}"
            return _unauthorized(event, f"join token {credential.token_id} {state}: ask for a new one")
        holder = self._roster.records.get(token.node_id or event.message.node_id or "")
        if not holds_place(holder, token) and not has_room(token, self._tokens, self._roster):
            return _forbidden(event, _used_up(token, holder))  # first of all: it need not forget its id
        if token.node_id is not None:
            return _only(token.node_id, event, because="this join token is for")
        return self._free_or_fresh(event, now, token)

    def _free_or_fresh(
        self, event: RegistrationArrived, now: float, token: Token | None = None
    ) -> str | NodeError:
        wanted = event.message.node_id
        if wanted is None:
            return event.fresh_id if event.fresh_id not in self._roster.records else _drawn_twice(event)
        holder = self._roster.records.get(wanted)
        if holder is None:
            return wanted
        may = _is_free(holder) if token is None else holds_place(holder, token)
        return wanted if may else _conflict(wanted, _held(holder, auth_off=self._auth_off, now=now))


def _only(node_id: str, event: RegistrationArrived, *, because: str) -> str | NodeError:
    """Return the one id that a connection can carry."""
    wanted = event.message.node_id
    if wanted in (None, node_id):
        return node_id
    return _conflict(
        wanted,
        f"{because} {node_id!r} and cannot carry {wanted!r} besides: "
        f"register with node_id null or {node_id!r}, or on another connection without that credential",
    )


def _is_free(holder: NodeRecord) -> bool:
    """With auth off an id that is offline or disconnected may be taken over.

    A node that the registry only suspects (§4, mass silence) still has its connection, and keeps its id.
    """
    return holder.status is NodeStatus.OFFLINE or holder.connection is None


def _held(holder: NodeRecord, *, auth_off: bool, now: float) -> str:
    node_id = holder.node_id
    state = "not connected" if holder.connection is None else "connected"
    ways = (
        f"wait until it is disconnected or offline, have an operator run gpu-agent registry forget {node_id}"
        if auth_off
        else "present its node token; if this machine is that node and lost its token, have an operator run "
        f"gpu-agent registry reclaim {node_id}; if that node is gone for good, "
        f"gpu-agent registry forget {node_id}"
    )
    return (
        f"node id {node_id!r} is held by a node at {holder.address or 'an unknown address'} "
        f"that registered {_ago(now - holder.registered_at)} ago ({holder.status}, {state}): "
        f"{ways}; or register with node_id null to be given a fresh id"
    )


def _used_up(token: Token, holder: NodeRecord | None) -> str:
    if token.node_id is not None:
        return (
            f"join token {token.token_id} was used: have an operator run "
            f"gpu-agent registry reclaim {token.node_id} for another"
        )
    times = "its one use is" if token.uses == 1 else f"its {token.uses} uses are"
    way = "gpu-agent registry token create for another"
    if holder is not None:
        way += f"; if this machine is {holder.node_id!r}, gpu-agent registry reclaim {holder.node_id} instead"
    return f"join token {token.token_id} lets no more nodes in, {times} taken: have an operator run {way}"


def _conflict(wanted: str | None, message: str) -> NodeError:
    return NodeError(node_id=wanted, code=ErrorCode.NODE_ID_CONFLICT, message=message)


def _unauthorized(event: RegistrationArrived, message: str) -> NodeError:
    return NodeError(node_id=event.message.node_id, code=ErrorCode.UNAUTHORIZED, message=message)


def _forbidden(event: RegistrationArrived, message: str) -> NodeError:
    return NodeError(node_id=event.message.node_id, code=ErrorCode.FORBIDDEN, message=message)


def _drawn_twice(event: RegistrationArrived) -> NodeError:
    return NodeError(
        code=ErrorCode.REGISTRY_BUSY,
        message=f"the id {event.fresh_id!r} drawn for this node is taken: register again for another",
        retry_after_seconds=0,
    )


def _ago(seconds: float) -> str:
    if seconds < _MINUTE:
        return f"{seconds:.0f} s"
    if seconds < _HOUR:
        return f"{seconds / _MINUTE:.0f} min"
    return f"{seconds / _HOUR:.1f} h"
