"""What operators ask of tokens: make them, end them, give a node another one (§2).

Each is saved before it is answered, and undone when the save fails. Draws nothing: a token's
secret is the shell's, its digest comes with the event.
"""

from typing import assert_never

from gpu_agent.registry.actions import CloseConnection, Level, Send
from gpu_agent.registry.credentials import CredentialKind
from gpu_agent.registry.events import (
    JoinTokenMade,
    OperatorTokenMade,
    RotationAsked,
    TokenAsked,
    TokenRevoked,
)
from gpu_agent.registry.house import House
from gpu_agent.registry.keys import NodeKeys
from gpu_agent.registry.record import NodeRecord
from gpu_agent.registry.step import Step
from gpu_agent.registry.tokens import Token
from gpu_agent.registry.unknown import there_is_no_node, there_is_no_token
from gpu_agent.wire.codes import CloseCode, ErrorCode
from gpu_agent.wire.messages import NodeControl, NodeError

UNKNOWN_TOKEN = "UNKNOWN_TOKEN"  # noqa: S105 - a code, no secret
NOTHING_TO_ROTATE = "NOTHING_TO_ROTATE"


class Issuing:
    """Takes what operators ask of tokens."""

    def __init__(self, house: House) -> None:
        self._house = house

    def asked(self, event: TokenAsked, step: Step) -> None:
        """Do what an operator asks."""
        match event:
            case JoinTokenMade():
                self._join(event, step)
            case OperatorTokenMade():
                self._operator(event, step)
            case TokenRevoked():
                self._revoke(event, step)
            case RotationAsked():
                self._rotate(event, step)
            case _ as unreachable:
                assert_never(unreachable)

    def purge(self, step: Step) -> None:
        """Forget the tokens that ended long ago."""
        for token_id in self._house.tokens.purge(step.now):
            step.keep_token(token_id)
            step.note("token_purged", {"token_id": token_id})

    def _join(self, event: JoinTokenMade, step: Step) -> None:
        """Let nodes join by a token, or one node have its id back."""
        known = event.node_id is None or event.node_id in self._house.roster.records
        if event.node_id is not None and event.reclaims and not known:
            step.refuse(event.ref, ErrorCode.UNKNOWN_NODE, there_is_no_node(event.node_id))
            return
        self._make(
            Token(
                token_id=event.token_id,
                kind=CredentialKind.JOIN,
                digest=event.digest,
                created_at=step.now,
                expires_at=_end(event.ttl_seconds, step.now),
                uses=event.uses,
                labels=event.labels,
                note=event.note,
                node_id=event.node_id,
            ),
            event.ref,
            step,
        )

    def _operator(self, event: OperatorTokenMade, step: Step) -> None:
        """Let somebody read, operate or administer."""
        self._make(
            Token(
                token_id=event.token_id,
                kind=CredentialKind.OPERATOR,
                digest=event.digest,
                created_at=step.now,
                expires_at=_end(event.ttl_seconds, step.now),
                role=event.role,
                name=event.name,
            ),
            event.ref,
            step,
        )

    def _revoke(self, event: TokenRevoked, step: Step) -> None:
        """End a token; nodes that joined by it stay."""
        token = self._house.tokens.by_id.get(event.token_id)
        if token is None:
            step.refuse(event.ref, UNKNOWN_TOKEN, there_is_no_token(event.token_id))
            return
        # Even one that was revoked before: that may not be kept yet, and what is answered must be.
        step.remember_token(token.token_id, token)
        step.keep_token(token.token_id)
        step.refuse_unsaved(event.ref)
        if token.revoked_at is None:
            self._house.tokens.put(token.revoked(step.now))
            step.note("token_revoked", {"token_id": token.token_id, "kind": token.kind.value})
        step.answer(event.ref)

    def _rotate(self, event: RotationAsked, step: Step) -> None:
        """Give a node another token: it registers again for it, where its session is open."""
        record = self._house.roster.records.get(event.node_id)
        if record is None:
            step.refuse(event.ref, ErrorCode.UNKNOWN_NODE, there_is_no_node(event.node_id))
            return
        if not record.keys.all:
            message = (
                f"node {record.node_id!r} has no token: let it register with a join token, "
                f"or run gpu-agent registry reclaim {record.node_id}"
            )
            step.refuse(event.ref, NOTHING_TO_ROTATE, message)
            return
        step.remember(record)
        step.keep_node(record)
        step.refuse_unsaved(event.ref)
        step.note("rotation_wished", {"node_id": record.node_id, "at_once": event.at_once}, Level.WARNING)
        if event.at_once:
            self._end_keys(record, step)
        else:
            record.keys = record.keys.to_be_rotated()
            record.issued_on = None
            if record.connection is not None:
                again = NodeControl(command="reregister", reason="an operator rotates its token")
                step.tell(Send(record.connection, again))
        step.answer(event.ref)

    def _make(self, token: Token, ref: int, step: Step) -> None:
        if token.token_id in self._house.tokens.by_id:
            message = f"the id {token.token_id!r} drawn for this token is taken: ask again for another"
            step.refuse(ref, ErrorCode.REGISTRY_BUSY, message)
            return
        step.remember_token(token.token_id, None)
        self._house.tokens.put(token)
        step.keep_token(token.token_id)
        step.refuse_unsaved(ref)
        step.note("token_made", _facts(token, step.now))
        step.answer(ref)

    def _end_keys(self, record: NodeRecord, step: Step) -> None:
        """Let nothing prove the node any more, and send whoever speaks for it away."""
        record.keys = NodeKeys()
        connection = record.connection
        if connection is None:
            return
        message = (
            "an operator ended this node's token: have one run "
            f"gpu-agent registry reclaim {record.node_id} and give its agent the token that this prints"
        )
        step.tell(
            Send(connection, NodeError(node_id=record.node_id, code=ErrorCode.UNAUTHORIZED, message=message))
        )
        self._house.roster.dismiss(connection)
        self._house.dispatch.refresh(record)
        step.tell(CloseConnection(connection, CloseCode.POLICY_VIOLATION, ErrorCode.UNAUTHORIZED.value))


def _end(ttl_seconds: float | None, now: float) -> float | None:
    return None if ttl_seconds is None else now + ttl_seconds


def _facts(token: Token, now: float) -> dict[str, object]:
    """What is told of a token that is made; never its digest."""
    facts: dict[str, object] = {"token_id": token.token_id, "kind": token.kind.value}
    if token.expires_at is not None:
        facts["ttl_seconds"] = round(token.expires_at - now)
    if token.role is not None:
        facts |= {"role": token.role.value, "name": token.name}
    else:
        facts["uses"] = token.uses
    if token.node_id is not None:
        facts["node_id"] = token.node_id
    return facts
