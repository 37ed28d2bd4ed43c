"""How tokens are created, issued to nodes, consumed, rotated and revoked (§2).

Draws nothing: the shell draws each secret, and the event brings its digest. What happens to a session is no
event of the log: a person who may read could sign in so often that it held nothing else.
"""

from dataclasses import replace
from typing import assert_never

from gpu_agent.registry.actions import (
    CloseConnection,
    Send,
    Step,
    unknown_node_message,
    unknown_token_message,
)
from gpu_agent.registry.dispatch.dispatch import Dispatch
from gpu_agent.registry.events import (
    JoinTokenRequested,
    OperatorTokenRequested,
    RegistrationReceived,
    RevocationRequested,
    RotationRequested,
    SessionRequested,
    TokenRequest,
)
from gpu_agent.registry.node import NodeRecord, NodeTable
from gpu_agent.registry.tokens import (
    CredentialKind,
    NodeTokens,
    Token,
    TokenState,
    TokenTable,
    tokens_of_joining_node,
)
from gpu_agent.wire.codes import CloseCode, ErrorCode
from gpu_agent.wire.messages import NodeControl, NodeError

UNKNOWN_TOKEN = "UNKNOWN_TOKEN"  # noqa: S105 - a code, no secret
NOTHING_TO_ROTATE = "NOTHING_TO_ROTATE"

SESSION_SECONDS = 12 * 3600.0
"""How long a session lives: a working day; never longer than its operator token."""
MOST_SESSIONS = 20
"""Of one operator token: the oldest ends when another one begins."""

REGISTER_FOR_TOKEN = NodeControl(command="reregister", reason="an operator rotates its token")
"""By it a node whose token is rotated gets the new one on its open connection."""


class TokenRequests:
    """Handles operators' requests for tokens."""

    def __init__(self, nodes: NodeTable, tokens: TokenTable, dispatch: Dispatch) -> None:
        self._nodes = nodes
        self._tokens = tokens
        self._dispatch = dispatch

    def handle(self, event: TokenRequest, step: Step) -> None:
        """Do what an operator requests."""
        match event:
            case JoinTokenRequested():
                self._create_join_token(event, step)
            case OperatorTokenRequested():
                self._create_operator_token(event, step)
            case SessionRequested():
                self._begin_session(event, step)
            case RevocationRequested():
                self._revoke(event, step)
            case RotationRequested():
                self._rotate(event, step)
            case _ as unreachable:
                assert_never(unreachable)

    def purge(self, step: Step) -> None:
        """Remove the tokens that ended long ago."""
        for token in self._tokens.purge(step.now):
            step.change_token(token.token_id)
            if token.kind is not CredentialKind.SESSION:
                step.log("token_purged", {"token_id": token.token_id})

    def _create_join_token(self, event: JoinTokenRequested, step: Step) -> None:
        """Create a token that lets nodes join, or gives one node its id back."""
        known = event.node_id is None or event.node_id in self._nodes.records
        if event.node_id is not None and event.reclaims and not known:
            step.refuse(event.ref, ErrorCode.UNKNOWN_NODE, unknown_node_message(event.node_id))
            return
        token = Token(
            token_id=event.token_id,
            kind=CredentialKind.JOIN,
            digest=event.digest,
            created_at=step.now,
            expires_at=_end(event.ttl_seconds, step.now),
            uses=event.uses,
            labels=event.labels,
            note=event.note,
            node_id=event.node_id,
        )
        self._create(token, event.ref, step)

    def _create_operator_token(self, event: OperatorTokenRequested, step: Step) -> None:
        """Create a token that lets its bearer read, operate or administer."""
        token = Token(
            token_id=event.token_id,
            kind=CredentialKind.OPERATOR,
            digest=event.digest,
            created_at=step.now,
            expires_at=_end(event.ttl_seconds, step.now),
            role=event.role,
            name=event.name,
        )
        self._create(token, event.ref, step)

    def _begin_session(self, event: SessionRequested, step: Step) -> None:
        """Create a session of an operator token: it has its role and its name, and ends with it."""
        parent = self._tokens.by_id.get(event.parent)
        if parent is None or parent.kind is not CredentialKind.OPERATOR:
            step.refuse(event.ref, UNKNOWN_TOKEN, unknown_token_message(event.parent))
            return
        if parent.state(step.now) is not TokenState.LIVE:
            step.refuse(event.ref, UNKNOWN_TOKEN, f"the operator token {event.parent!r} has ended")
            return
        for oldest in self._tokens.sessions_of(parent.token_id)[: 1 - MOST_SESSIONS]:
            self._end(oldest, step)
        ends = step.now + SESSION_SECONDS
        token = Token(
            token_id=event.token_id,
            kind=CredentialKind.SESSION,
            digest=event.digest,
            created_at=step.now,
            expires_at=ends if parent.expires_at is None else min(ends, parent.expires_at),
            role=parent.role,
            name=parent.name,
            parent=parent.token_id,
        )
        self._create(token, event.ref, step)

    def _revoke(self, event: RevocationRequested, step: Step) -> None:
        """Revoke a token and its sessions; nodes that joined by it stay."""
        token = self._tokens.by_id.get(event.token_id)
        if token is None:
            step.refuse(event.ref, UNKNOWN_TOKEN, unknown_token_message(event.token_id))
            return
        for one in (token, *self._tokens.sessions_of(token.token_id)):
            self._end(one, step)
        step.answer(event.ref)

    def _rotate(self, event: RotationRequested, step: Step) -> None:
        """Give a node another token: where its session is open it registers again for it."""
        record = self._nodes.records.get(event.node_id)
        if record is None:
            step.refuse(event.ref, ErrorCode.UNKNOWN_NODE, unknown_node_message(event.node_id))
            return
        if not record.tokens.all:
            message = (
                f"node {record.node_id!r} has no token: let it register with a join token, "
                f"or run gpu-agent registry node readmit {record.node_id}"
            )
            step.refuse(event.ref, NOTHING_TO_ROTATE, message)
            return
        step.change_node(record)
        fields = {"node_id": record.node_id, "revoke_now": event.revoke_now}
        step.log("token_rotation_requested", fields)
        if event.revoke_now:
            self._end_node_tokens(record, step)
        else:
            _set_node_tokens(record, record.tokens.with_rotation(), self._tokens)
            record.issued_on = record.issued_in = None
            if record.connection is not None:
                step.effects.append(Send(record.connection, REGISTER_FOR_TOKEN))
        step.answer(event.ref)

    def delete_unsent(self, unsent: Step, step: Step) -> None:
        """Delete the tokens that a step made and whose text was sent to no one."""
        for token_id in unsent.tokens_created:
            self._tokens.remove(token_id)
            step.change_token(token_id)
            step.log("token_purged", {"token_id": token_id, "reason": "its text was sent to no one"})
        for record, token_id in unsent.node_tokens_issued:
            record.issued_on = record.issued_in = None  # the same connection gets another token
            if self._nodes.records.get(record.node_id) is record:
                _set_node_tokens(record, record.tokens.without_following(token_id), self._tokens)
                step.change_node(record)

    def _create(self, token: Token, ref: int, step: Step) -> None:
        if token.token_id in self._tokens.by_id:
            message = f"the id {token.token_id!r} drawn for this token is taken: send the request again"
            step.refuse(ref, ErrorCode.REGISTRY_BUSY, message)
            return
        self._tokens.put(token)
        step.change_token(token.token_id)
        step.tokens_created.append(token.token_id)
        if token.kind is not CredentialKind.SESSION:
            step.log("token_created", _log_fields(token, step.now))
        step.answer(ref)

    def _end(self, token: Token, step: Step) -> None:
        if token.revoked_at is None:
            self._tokens.put(token.revoked(step.now))
            step.change_token(token.token_id)
            if token.kind is not CredentialKind.SESSION:
                step.log("token_revoked", {"token_id": token.token_id, "kind": token.kind.value})

    def _end_node_tokens(self, record: NodeRecord, step: Step) -> None:
        """Let nothing prove the node any more, and close its connection."""
        _set_node_tokens(record, NodeTokens(), self._tokens)
        connection = record.connection
        if connection is None:
            return
        message = (
            "an operator ended this node's token: have one run "
            f"gpu-agent registry node readmit {record.node_id} and give its agent the token that this prints"
        )
        error = NodeError(node_id=record.node_id, code=ErrorCode.UNAUTHORIZED, message=message)
        step.effects.append(Send(connection, error))
        self._nodes.dismiss(connection)
        self._dispatch.update(record)
        step.effects.append(
            CloseConnection(connection, CloseCode.POLICY_VIOLATION, ErrorCode.UNAUTHORIZED.value)
        )


def issue_node_token(
    record: NodeRecord, event: RegistrationReceived, *, tokens: TokenTable, step: Step
) -> str | None:
    """Use a registration's credential, and return the text of the token that its ack brings, if any.

    Called before the connection stands for the node. Until its first heartbeat a node that joined by a join
    token gets another token each time, as it may not have stored the one before. While an operator rotates a
    node's token, one connection gets only one: a node that registers there again has it, and no other may
    replace it.
    """
    fresh, credential = event.fresh_token, event.credential
    if fresh is None or credential is None:
        return None
    arrives = record.connection != event.connection
    if credential.kind is CredentialKind.JOIN and (arrives or not record.tokens.spent):
        _set_node_tokens(record, tokens_of_joining_node(fresh, credential.token_id), tokens)
        _grant_labels(record, tokens.by_id.get(credential.token_id))
    else:
        if arrives:
            _set_node_tokens(record, record.tokens.used(credential.token_id), tokens)
        if not record.tokens.rotating or record.issued_on == event.connection:
            return None
        _set_node_tokens(record, record.tokens.followed_by(fresh), tokens)
    record.issued_on, record.issued_in = event.connection, record.epoch + 1
    step.node_tokens_issued.append((record, fresh.token_id))
    step.log("node_token_issued", {"node_id": record.node_id, "token_id": fresh.token_id})
    return fresh.text


def consume_join_use(record: NodeRecord, tokens: TokenTable, step: Step) -> None:
    """Count a node's first heartbeat as a use of the token that it joined by."""
    _set_node_tokens(record, replace(record.tokens, spent=True), tokens)
    step.change_node(record)
    token = tokens.by_id.get(record.tokens.joined_by or "")
    if token is not None:
        tokens.put(token.used(step.now))
        step.change_token(token.token_id)


def _set_node_tokens(record: NodeRecord, tokens: NodeTokens, table: TokenTable) -> None:
    """Give a node tokens: it is found by these, and by none that it had."""
    record.tokens = tokens
    table.put_node(record.node_id, tokens)


def _grant_labels(record: NodeRecord, token: Token | None) -> None:
    """Give a node the labels of its join token; one that only gets its id back keeps what it had."""
    if token is not None and (token.labels or token.node_id is None):
        record.granted_labels = token.labels


def _end(ttl_seconds: float | None, now: float) -> float | None:
    return None if ttl_seconds is None else now + ttl_seconds


def _log_fields(token: Token, now: float) -> dict[str, object]:
    """Return what is logged of a token that is created; never its digest."""
    fields: dict[str, object] = {"token_id": token.token_id, "kind": token.kind.value}
    if token.expires_at is not None:
        fields["ttl_seconds"] = round(token.expires_at - now)
    if token.role is not None:
        fields |= {"role": token.role.value, "name": token.name}
    else:
        fields["uses"] = token.uses
    if token.node_id is not None:
        fields["node_id"] = token.node_id
    return fields
