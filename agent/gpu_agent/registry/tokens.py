"""Every token that opens the registry: how it is created, found, issued, rotated and revoked (§2).

Join and operator tokens are stored here; a node's tokens are part of its record and only found here. Draws
nothing: the shell draws each secret, and the event brings its digest.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import assert_never

from gpu_agent.registry.actions import (
    CloseConnection,
    Level,
    Send,
    unknown_node_message,
    unknown_token_message,
)
from gpu_agent.registry.credentials import (
    Credential,
    CredentialKind,
    NodeTokens,
    Role,
    tokens_of_joining_node,
)
from gpu_agent.registry.deadlines import Deadlines
from gpu_agent.registry.dispatch.dispatch import Dispatch
from gpu_agent.registry.events import (
    JoinTokenRequested,
    OperatorTokenRequested,
    RegistrationReceived,
    RevocationRequested,
    RotationRequested,
    TokenRequest,
)
from gpu_agent.registry.node import NodeRecord, NodeTable
from gpu_agent.registry.step import Step
from gpu_agent.wire.codes import CloseCode, ErrorCode
from gpu_agent.wire.messages import NodeControl, NodeError

UNKNOWN_TOKEN = "UNKNOWN_TOKEN"  # noqa: S105 - a code, no secret
NOTHING_TO_ROTATE = "NOTHING_TO_ROTATE"


class TokenState(StrEnum):
    """Whether a token opens anything, and if not, why."""

    LIVE = "live"
    USED_UP = "used_up"
    """As many nodes have joined by it as may."""
    EXPIRED = "expired"
    REVOKED = "revoked"


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A join or operator token; replaced as a whole, never changed. Times are monotonic seconds."""

    token_id: str
    kind: CredentialKind
    digest: str = field(repr=False)
    created_at: float
    expires_at: float | None = None
    """None: it does not expire."""
    revoked_at: float | None = None
    note: str = ""
    uses: int | None = None
    """How many nodes may join by it; None for any number."""
    spent: int = 0
    """How many have: a node counts from its first heartbeat."""
    used_up_at: float | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    """Granted to the nodes that join by it."""
    node_id: str | None = None
    """The only id that it gives; None for any."""
    role: Role | None = None
    """An operator's."""
    name: str = ""
    """The operator's."""

    def state(self, now: float) -> TokenState:
        """Say whether it opens anything."""
        if self.revoked_at is not None:
            return TokenState.REVOKED
        if self.expires_at is not None and now >= self.expires_at:
            return TokenState.EXPIRED
        if self.uses is not None and self.spent >= self.uses:
            return TokenState.USED_UP
        return TokenState.LIVE

    @property
    def ended_at(self) -> float | None:
        """From when on it opens nothing; None while that is not known."""
        ends = (self.revoked_at, self.expires_at, self.used_up_at)
        return min((end for end in ends if end is not None), default=None)

    def used(self, now: float) -> "Token":
        """Return it as it is once one more node has joined by it."""
        spent = self.spent + 1
        return replace(self, spent=spent, used_up_at=now if spent == self.uses else self.used_up_at)

    def revoked(self, now: float) -> "Token":
        """Return it as it is once it was revoked."""
        return replace(self, revoked_at=now)

    @property
    def credential(self) -> Credential:
        """What it stands for when it is presented."""
        return Credential(self.kind, self.token_id, self.node_id, self.role)


_NOT_RECOGNISED = frozenset({TokenState.EXPIRED, TokenState.REVOKED})
"""A token that is used up is recognised: a node that presents it gets the reason when it registers."""


class TokenTable:
    """Join and operator tokens by their id, and all tokens by their digest."""

    def __init__(self, retention_seconds: float) -> None:
        self.by_id: dict[str, Token] = {}
        self._retention_seconds = retention_seconds
        """How long a token stays after its end."""
        self.purges = Deadlines()
        """When each token with an end may be purged."""
        self._by_digest: dict[str, Token] = {}
        self._node_of: dict[str, tuple[str, str]] = {}
        """By digest: the node and the token's id."""
        self._node_tokens: dict[str, NodeTokens] = {}
        """By node: its tokens that are found here."""
        self._reserved: dict[str, dict[str, None]] = {}
        """By join token: the nodes that joined by it and have sent no heartbeat yet."""

    def put(self, token: Token) -> None:
        """Add a token, or replace it."""
        self.by_id[token.token_id] = token
        self._by_digest[token.digest] = token
        if token.ended_at is not None:
            self.purges.at(token.token_id, token.ended_at + self._retention_seconds)

    def remove(self, token_id: str) -> None:
        """Remove a token."""
        token = self.by_id.pop(token_id, None)
        if token is not None:
            del self._by_digest[token.digest]
            self.purges.cancel(token_id)

    def purge(self, now: float) -> list[str]:
        """Remove the tokens that ended long ago; returns their ids."""
        gone = []
        for token_id in list(self.purges.due(now)):
            ended_at = self.by_id[token_id].ended_at
            if ended_at is not None and ended_at + self._retention_seconds <= now:
                self.remove(token_id)
                gone.append(token_id)
            else:
                self.put(self.by_id[token_id])
        return gone

    def reserved(self, token_id: str) -> Collection[str]:
        """Return the nodes that joined by a token and have sent no heartbeat yet."""
        return self._reserved.get(token_id, ())

    def set_node_tokens(self, record: NodeRecord, tokens: NodeTokens) -> None:
        """Give a node tokens, and find it by these and by none that it had."""
        record.tokens = tokens
        if self._node_tokens.get(record.node_id) is tokens:
            return
        self.remove_node(record.node_id)
        self._node_tokens[record.node_id] = tokens
        for token in tokens.all:
            self._node_of[token.digest] = (record.node_id, token.token_id)
        if tokens.joined_by is not None and not tokens.spent:
            self._reserved.setdefault(tokens.joined_by, {})[record.node_id] = None

    def remove_node(self, node_id: str) -> None:
        """Find a node no longer."""
        tokens = self._node_tokens.pop(node_id, None)
        if tokens is None:
            return
        for token in tokens.all:
            self._node_of.pop(token.digest, None)
        reserved = self._reserved.get(tokens.joined_by or "")
        if reserved is not None:
            reserved.pop(node_id, None)
            if not reserved:
                del self._reserved[tokens.joined_by or ""]

    def credential(self, digest: str, now: float) -> Credential | None:
        """Return what the token of this digest stands for now; None when it opens nothing."""
        token = self._by_digest.get(digest)
        if token is not None:
            return None if token.state(now) in _NOT_RECOGNISED else token.credential
        found = self._node_of.get(digest)
        if found is None:
            return None
        node_id, token_id = found
        return Credential(CredentialKind.NODE, token_id, node_id)


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
            case RevocationRequested():
                self._revoke(event, step)
            case RotationRequested():
                self._rotate(event, step)
            case _ as unreachable:
                assert_never(unreachable)

    def purge(self, step: Step) -> None:
        """Remove the tokens that ended long ago."""
        for token_id in self._tokens.purge(step.now):
            step.change_token(token_id)
            step.log("token_purged", {"token_id": token_id})

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

    def _revoke(self, event: RevocationRequested, step: Step) -> None:
        """Revoke a token; nodes that joined by it stay."""
        token = self._tokens.by_id.get(event.token_id)
        if token is None:
            step.refuse(event.ref, UNKNOWN_TOKEN, unknown_token_message(event.token_id))
            return
        if token.revoked_at is None:
            self._tokens.put(token.revoked(step.now))
            step.change_token(token.token_id)
            step.log("token_revoked", {"token_id": token.token_id, "kind": token.kind.value})
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
                f"or run gpu-agent registry reclaim {record.node_id}"
            )
            step.refuse(event.ref, NOTHING_TO_ROTATE, message)
            return
        step.change_node(record)
        fields = {"node_id": record.node_id, "at_once": event.at_once}
        step.log("token_rotation_requested", fields, Level.WARNING)
        if event.at_once:
            self._end_node_tokens(record, step)
        else:
            self._tokens.set_node_tokens(record, record.tokens.with_rotation())
            record.issued_on = None
            if record.connection is not None:
                again = NodeControl(command="reregister", reason="an operator rotates its token")
                step.add(Send(record.connection, again))
        step.answer(event.ref)

    def _create(self, token: Token, ref: int, step: Step) -> None:
        if token.token_id in self._tokens.by_id:
            message = f"the id {token.token_id!r} drawn for this token is taken: send the request again"
            step.refuse(ref, ErrorCode.REGISTRY_BUSY, message)
            return
        self._tokens.put(token)
        step.change_token(token.token_id)
        step.tokens_created.append(token.token_id)
        step.log("token_created", _log_fields(token, step.now))
        step.answer(ref)

    def _end_node_tokens(self, record: NodeRecord, step: Step) -> None:
        """Let nothing prove the node any more, and close its connection."""
        self._tokens.set_node_tokens(record, NodeTokens())
        connection = record.connection
        if connection is None:
            return
        message = (
            "an operator ended this node's token: have one run "
            f"gpu-agent registry reclaim {record.node_id} and give its agent the token that this prints"
        )
        error = NodeError(node_id=record.node_id, code=ErrorCode.UNAUTHORIZED, message=message)
        step.add(Send(connection, error))
        self._nodes.dismiss(connection)
        self._dispatch.update(record)
        step.add(CloseConnection(connection, CloseCode.POLICY_VIOLATION, ErrorCode.UNAUTHORIZED.value))


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
        tokens.set_node_tokens(record, tokens_of_joining_node(fresh, credential.token_id))
        _grant_labels(record, tokens.by_id.get(credential.token_id))
    else:
        if arrives:
            tokens.set_node_tokens(record, record.tokens.used(credential.token_id))
        if not record.tokens.rotating or record.issued_on == event.connection:
            return None
        tokens.set_node_tokens(record, record.tokens.followed_by(fresh))
    record.issued_on = event.connection
    step.node_tokens_issued.append(record)
    step.log("node_token_issued", {"node_id": record.node_id, "token_id": fresh.token_id})
    return fresh.text


def consume_join_use(record: NodeRecord, tokens: TokenTable, step: Step) -> None:
    """Count a node's first heartbeat as a use of the token that it joined by."""
    tokens.set_node_tokens(record, replace(record.tokens, spent=True))
    step.change_node(record)
    token = tokens.by_id.get(record.tokens.joined_by or "")
    if token is not None:
        tokens.put(token.used(step.now))
        step.change_token(token.token_id)


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
