"""How tokens are created, issued to nodes, rotated and revoked (§2).

Draws nothing: the shell draws each secret, and the event brings its digest.
"""

from dataclasses import replace
from typing import assert_never

from gpu_agent.registry.actions import (
    CloseConnection,
    Level,
    Send,
    unknown_node_message,
    unknown_token_message,
)
from gpu_agent.registry.credentials import CredentialKind, NodeTokens, tokens_of_joining_node
from gpu_agent.registry.events import (
    JoinTokenRequested,
    OperatorTokenRequested,
    RegistrationReceived,
    RevocationRequested,
    RotationRequested,
    TokenRequest,
)
from gpu_agent.registry.node import NodeRecord
from gpu_agent.registry.status import House
from gpu_agent.registry.step import Step
from gpu_agent.registry.tokens import Token, TokenTable
from gpu_agent.wire.codes import CloseCode, ErrorCode
from gpu_agent.wire.messages import NodeControl, NodeError

# What operators ask of tokens: make them, end them, give a node another one (§2).
#
# Each is saved before it is answered, and undone when the save fails. Draws nothing: a token's
# secret is the shell's, its digest comes with the event.


UNKNOWN_TOKEN = "UNKNOWN_TOKEN"  # noqa: S105 - a code, no secret
NOTHING_TO_ROTATE = "NOTHING_TO_ROTATE"


class TokenRequests:
    """Takes what operators ask of tokens."""

    def __init__(self, house: House) -> None:
        self._house = house

    def asked(self, event: TokenRequest, step: Step) -> None:
        """Do what an operator asks."""
        match event:
            case JoinTokenRequested():
                self._join(event, step)
            case OperatorTokenRequested():
                self._operator(event, step)
            case RevocationRequested():
                self._revoke(event, step)
            case RotationRequested():
                self._rotate(event, step)
            case _ as unreachable:
                assert_never(unreachable)

    def purge(self, step: Step) -> None:
        """Forget the tokens that ended long ago."""
        for token_id in self._house.tokens.purge(step.now):
            step.change_token(token_id)
            step.log("token_purged", {"token_id": token_id})

    def _join(self, event: JoinTokenRequested, step: Step) -> None:
        """Let nodes join by a token, or one node have its id back."""
        known = event.node_id is None or event.node_id in self._house.roster.records
        if event.node_id is not None and event.reclaims and not known:
            step.refuse(event.ref, ErrorCode.UNKNOWN_NODE, unknown_node_message(event.node_id))
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

    def _operator(self, event: OperatorTokenRequested, step: Step) -> None:
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

    def _revoke(self, event: RevocationRequested, step: Step) -> None:
        """End a token; nodes that joined by it stay."""
        token = self._house.tokens.by_id.get(event.token_id)
        if token is None:
            step.refuse(event.ref, UNKNOWN_TOKEN, unknown_token_message(event.token_id))
            return
        if token.revoked_at is None:
            self._house.tokens.put(token.revoked(step.now))
            step.change_token(token.token_id)
            step.log("token_revoked", {"token_id": token.token_id, "kind": token.kind.value})
        step.answer(event.ref)

    def _rotate(self, event: RotationRequested, step: Step) -> None:
        """Give a node another token: it registers again for it, where its session is open."""
        record = self._house.roster.records.get(event.node_id)
        if record is None:
            step.refuse(event.ref, ErrorCode.UNKNOWN_NODE, unknown_node_message(event.node_id))
            return
        if not record.keys.all:
            message = (
                f"node {record.node_id!r} has no token: let it register with a join token, "
                f"or run gpu-agent registry reclaim {record.node_id}"
            )
            step.refuse(event.ref, NOTHING_TO_ROTATE, message)
            return
        step.change_node(record)
        step.log(
            "token_rotation_requested", {"node_id": record.node_id, "at_once": event.at_once}, Level.WARNING
        )
        if event.at_once:
            self._end_keys(record, step)
        else:
            record.keys = record.keys.with_rotation()
            record.issued_on = None
            if record.connection is not None:
                again = NodeControl(command="reregister", reason="an operator rotates its token")
                step.add(Send(record.connection, again))
        step.answer(event.ref)

    def _make(self, token: Token, ref: int, step: Step) -> None:
        if token.token_id in self._house.tokens.by_id:
            message = f"the id {token.token_id!r} drawn for this token is taken: ask again for another"
            step.refuse(ref, ErrorCode.REGISTRY_BUSY, message)
            return
        self._house.tokens.put(token)
        step.change_token(token.token_id)
        step.tokens_created.append(token.token_id)
        step.log("token_created", _facts(token, step.now))
        step.answer(ref)

    def _end_keys(self, record: NodeRecord, step: Step) -> None:
        """Let nothing prove the node any more, and send whoever speaks for it away."""
        record.keys = NodeTokens()
        connection = record.connection
        if connection is None:
            return
        message = (
            "an operator ended this node's token: have one run "
            f"gpu-agent registry reclaim {record.node_id} and give its agent the token that this prints"
        )
        step.add(
            Send(connection, NodeError(node_id=record.node_id, code=ErrorCode.UNAUTHORIZED, message=message))
        )
        self._house.roster.dismiss(connection)
        self._house.dispatch.refresh(record)
        step.add(CloseConnection(connection, CloseCode.POLICY_VIOLATION, ErrorCode.UNAUTHORIZED.value))


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


# How a registration proves its node, and whether it is given a token for the times after (§2).
#
# Issues what the shell has drawn, or lets it go. Knows no connection's socket and no status.


def issue_node_token(
    record: NodeRecord, event: RegistrationReceived, *, tokens: TokenTable, step: Step
) -> str | None:
    """Take a registration's proof, and return the text of the token that its ack brings, if any.

    Called before the connection stands for the node. Until its first beat a node that came by a join
    token is told another each time, as it may not have stored the one before. While it is rotated a
    connection is told one only: who registers there again has that, and no other may take its place.
    """
    fresh, credential = event.fresh_token, event.credential
    if fresh is None or credential is None:
        return None
    arrives = record.connection != event.connection
    if credential.kind is CredentialKind.JOIN and (arrives or not record.keys.spent):
        record.keys = tokens_of_joining_node(fresh, credential.token_id)
        _grant_labels(record, tokens.by_id.get(credential.token_id))
    else:
        if arrives:
            record.keys = record.keys.proven_by(credential.token_id)
        if not record.keys.rotating or record.issued_on == event.connection:
            return None
        record.keys = record.keys.followed_by(fresh)
    record.issued_on = event.connection
    step.log("node_token_issued", {"node_id": record.node_id, "token_id": fresh.token_id})
    return fresh.text


def consume_join_use(record: NodeRecord, tokens: TokenTable, step: Step) -> None:
    """Count a node's first beat as a use of the token that it joined by; it holds its place from then on."""
    record.keys = replace(record.keys, spent=True)
    step.change_node(record)
    token = tokens.by_id.get(record.keys.joined_by or "")
    if token is not None:
        tokens.put(token.used(step.now))
        step.change_token(token.token_id)


def _grant_labels(record: NodeRecord, token: Token | None) -> None:
    """Give a node what its join token grants; one that only has its id back keeps what it had."""
    if token is not None and (token.labels or token.node_id is None):
        record.granted_labels = token.labels
