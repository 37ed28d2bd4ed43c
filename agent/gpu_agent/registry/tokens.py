"""What a token is and what it opens: roles, credentials, a node's tokens, and the table that finds them (§2).

A token's text is a secret of the shell; here it is known by the digest that the shell made of it. Join and
operator tokens are stored here; a node's tokens are part of its record and only found here.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from gpu_agent.registry.deadlines import Deadlines

_MOST_FOLLOWING = 2
"""Before a third is issued, the node has stored the second, or the first, or still holds the old one."""


class Role(StrEnum):
    """What an operator token allows; each role allows what those before it do."""

    READ = "read"
    OPERATE = "operate"
    ADMIN = "admin"


class CredentialKind(StrEnum):
    """What a token is for."""

    JOIN = "join"
    """A node's first contact, or its way back to an id that it can no longer prove."""
    NODE = "node"
    """One node, after its first contact."""
    OPERATOR = "operator"
    SESSION = "session"
    """A browser in which a person signed in to the fleet page with an operator token."""


_ORDER = tuple(Role)


def allows(role: Role, needed: Role) -> bool:
    """Say whether a role allows what another one is needed for."""
    return _ORDER.index(role) >= _ORDER.index(needed)


@dataclass(frozen=True, slots=True)
class Credential:
    """What a token stood for when it was presented."""

    kind: CredentialKind
    token_id: str
    node_id: str | None = None
    """The only id that it may carry: a node token's own, a reclaim token's; None for any."""
    role: Role | None = None
    """An operator's."""
    name: str = ""
    """The operator's."""
    parent_id: str | None = None
    """A session's: the operator token with which it began."""


@dataclass(frozen=True, slots=True)
class FreshToken:
    """A node token that the shell has drawn; the fleet decides whether it is ever issued."""

    token_id: str
    text: str = field(repr=False)
    digest: str


@dataclass(frozen=True, slots=True)
class NodeToken:
    """One token of a node, as it is stored."""

    token_id: str
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeTokens:
    """What proves a node's identity; replaced as a whole, never changed.

    A node has one token. While an operator rotates it there are more: the old one proves the node until a new
    one does, and so does each that was issued since, since the node may have stored any of them.
    """

    current: NodeToken | None = None
    following: tuple[NodeToken, ...] = ()
    """Those that rotations issued, none of them used yet, the newest last."""
    rotating: bool = False
    """An operator requested another token for the node, and the node has not used one yet."""
    joined_by: str | None = None
    """The join token that let the node in."""
    spent: bool = True
    """False until its first heartbeat: until then a use of its join token is only reserved."""

    @property
    def all(self) -> tuple[NodeToken, ...]:
        """Every token that proves the node."""
        return self.following if self.current is None else (self.current, *self.following)

    def has(self, token_id: str) -> bool:
        """Say whether this token proves the node."""
        return any(token.token_id == token_id for token in self.all)

    def used(self, token_id: str) -> "NodeTokens":
        """Return the tokens after this one was used: the first use of a new token ends those before it."""
        newer = [token.token_id for token in self.following]
        if token_id not in newer:
            return self
        current, *following = self.following[newer.index(token_id) :]
        rotating = self.rotating and bool(following)
        return replace(self, current=current, following=tuple(following), rotating=rotating)

    def with_rotation(self) -> "NodeTokens":
        """Return the tokens of a node that is to have another one."""
        return replace(self, rotating=True)

    def without_following(self, token_id: str) -> "NodeTokens":
        """Return the tokens without one that a rotation issued and that was sent to no one."""
        return replace(self, following=tuple(one for one in self.following if one.token_id != token_id))

    def followed_by(self, fresh: FreshToken) -> "NodeTokens":
        """Return the tokens with a new one beside those that the node may have stored."""
        following = (*self.following, NodeToken(fresh.token_id, fresh.digest))
        return replace(self, following=following[-_MOST_FOLLOWING:])


def tokens_of_joining_node(fresh: FreshToken, token_id: str) -> NodeTokens:
    """Return the tokens of a node that joined by a join token; what proved it before does not any more."""
    return NodeTokens(current=NodeToken(fresh.token_id, fresh.digest), joined_by=token_id, spent=False)


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
    parent: str | None = None
    """Of a session: the operator token with which the person signed in."""

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
        return Credential(self.kind, self.token_id, self.node_id, self.role, self.name, self.parent)


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
            self.purges.at(token.token_id, token.ended_at + self._retained_seconds(token))

    def remove(self, token_id: str) -> None:
        """Remove a token."""
        token = self.by_id.pop(token_id, None)
        if token is not None:
            del self._by_digest[token.digest]
            self.purges.cancel(token_id)

    def purge(self, now: float) -> list[Token]:
        """Remove the tokens that ended long ago, and return them."""
        gone = []
        for token_id in list(self.purges.due(now)):
            token = self.by_id[token_id]
            if token.ended_at is not None and token.ended_at + self._retained_seconds(token) <= now:
                self.remove(token_id)
                gone.append(token)
            else:
                self.put(token)
        return gone

    def sessions_of(self, token_id: str) -> list[Token]:
        """Return the sessions of an operator token, the oldest first."""
        sessions = (token for token in self.by_id.values() if token.parent == token_id)
        return sorted(sessions, key=lambda token: (token.created_at, token.token_id))

    def reserved(self, token_id: str) -> Collection[str]:
        """Return the nodes that joined by a token and have sent no heartbeat yet."""
        return self._reserved.get(token_id, ())

    def put_node(self, node_id: str, tokens: NodeTokens) -> None:
        """Find a node by these tokens, and by none that it had."""
        if self._node_tokens.get(node_id) is tokens:
            return
        self.remove_node(node_id)
        self._node_tokens[node_id] = tokens
        for token in tokens.all:
            self._node_of[token.digest] = (node_id, token.token_id)
        if tokens.joined_by is not None and not tokens.spent:
            self._reserved.setdefault(tokens.joined_by, {})[node_id] = None

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

    def _retained_seconds(self, token: Token) -> float:
        """A session that ended says nothing to anybody: it goes at once."""
        return self._retention_seconds if token.parent is None else 0.0
