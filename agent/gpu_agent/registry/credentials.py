"""What a presented token stands for: roles, credentials, and the tokens that prove one node.

A token's text is a secret of the shell; here it is known by the digest that the shell made of it. A node has one
token. While an operator rotates it, the old token proves the node until a new one does.
"""

from dataclasses import dataclass, field, replace
from enum import StrEnum

# What a presented token stands for, and what operators may do with theirs. Values only.
#
# A token's text is a secret of the shell's: here it is known by the digest that the shell made of it.


class Role(StrEnum):
    """What an operator token allows; each role allows what those before it do."""

    READ = "read"
    OPERATE = "operate"
    ADMIN = "admin"


class CredentialKind(StrEnum):
    """Whom a token is for."""

    JOIN = "join"
    """A node's first contact, or its way back to an id that it can no longer prove."""
    NODE = "node"
    """One node, ever after."""
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
    """A node token that the shell has drawn; whether it is ever issued is the fleet's to decide."""

    token_id: str
    text: str = field(repr=False)
    digest: str


# What proves that somebody is a certain node: the digests of its tokens, and how it came by them.
#
# A node has one token. While it is rotated it has more: the old one proves it until a new one does, and of
# those that it was told since, whichever it has stored.


_MOST_FOLLOWING = 2
"""Before a third is told, the node was told the second and stored it, or the first, or holds the old one."""


@dataclass(frozen=True, slots=True)
class NodeToken:
    """One token of a node's, as it is kept."""

    token_id: str
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeTokens:
    """A node's tokens; replaced as a whole, never changed."""

    current: NodeToken | None = None
    following: tuple[NodeToken, ...] = ()
    """Those that rotations gave it, none of them proven yet, the newest last."""
    rotating: bool = False
    """An operator wants another token for it, and it has not proven one yet."""
    joined_by: str | None = None
    """The join token that let it in."""
    spent: bool = True
    """False until its first beat: so long a use of its join token is only reserved."""

    @property
    def all(self) -> tuple[NodeToken, ...]:
        """Every key that proves the node."""
        return self.following if self.current is None else (self.current, *self.following)

    def has(self, token_id: str) -> bool:
        """Say whether this token proves the node."""
        return any(key.token_id == token_id for key in self.all)

    def proven_by(self, token_id: str) -> "NodeTokens":
        """Return the keys once this one was used: the first proof of a new token ends those before it."""
        newer = [key.token_id for key in self.following]
        if token_id not in newer:
            return self
        place = newer.index(token_id)
        current, *following = self.following[place:]
        rotating = self.rotating and bool(following)
        return replace(self, current=current, following=tuple(following), rotating=rotating)

    def with_rotation(self) -> "NodeTokens":
        """Return the keys of a node that is to have another token."""
        return replace(self, rotating=True)

    def followed_by(self, fresh: FreshToken) -> "NodeTokens":
        """Return the keys with a new token beside those that the node may have stored."""
        return replace(self, following=(*self.following, _key(fresh))[-_MOST_FOLLOWING:])


def tokens_of_joining_node(fresh: FreshToken, token_id: str) -> NodeTokens:
    """Return the keys of a node that came by a join token; whatever proved it before does not any more."""
    return NodeTokens(current=_key(fresh), joined_by=token_id, spent=False)


def _key(fresh: FreshToken) -> NodeToken:
    return NodeToken(fresh.token_id, fresh.digest)
