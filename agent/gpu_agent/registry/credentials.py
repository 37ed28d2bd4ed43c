"""What a presented token stands for: roles, credentials, and the tokens that prove one node.

A token's text is a secret of the shell; here it is known by the digest that the shell made of it.
"""

from dataclasses import dataclass, field, replace
from enum import StrEnum

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

    def followed_by(self, fresh: FreshToken) -> "NodeTokens":
        """Return the tokens with a new one beside those that the node may have stored."""
        following = (*self.following, NodeToken(fresh.token_id, fresh.digest))
        return replace(self, following=following[-_MOST_FOLLOWING:])


def tokens_of_joining_node(fresh: FreshToken, token_id: str) -> NodeTokens:
    """Return the tokens of a node that joined by a join token; what proved it before does not any more."""
    return NodeTokens(current=NodeToken(fresh.token_id, fresh.digest), joined_by=token_id, spent=False)
