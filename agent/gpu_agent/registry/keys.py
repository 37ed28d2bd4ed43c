"""What proves that somebody is a certain node: the digests of its tokens, and how it came by them.

A node has one token. While it is rotated it has more: the old one proves it until a new one does, and of
those that it was told since, whichever it has stored.
"""

from dataclasses import dataclass, replace

from gpu_agent.registry.credentials import FreshToken

_MOST_FOLLOWING = 2
"""Before a third is told, the node was told the second and stored it, or the first, or holds the old one."""


@dataclass(frozen=True, slots=True)
class NodeKey:
    """One token of a node's, as it is kept."""

    token_id: str
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeKeys:
    """A node's tokens; replaced as a whole, never changed."""

    current: NodeKey | None = None
    following: tuple[NodeKey, ...] = ()
    """Those that rotations gave it, none of them proven yet, the newest last."""
    rotating: bool = False
    """An operator wants another token for it, and it has not proven one yet."""
    joined_by: str | None = None
    """The join token that let it in."""
    spent: bool = True
    """False until its first beat: so long a use of its join token is only reserved."""

    @property
    def all(self) -> tuple[NodeKey, ...]:
        """Every key that proves the node."""
        return self.following if self.current is None else (self.current, *self.following)

    def has(self, token_id: str) -> bool:
        """Say whether this token proves the node."""
        return any(key.token_id == token_id for key in self.all)

    def proven_by(self, token_id: str) -> "NodeKeys":
        """Return the keys once this one was used: the first proof of a new token ends those before it."""
        newer = [key.token_id for key in self.following]
        if token_id not in newer:
            return self
        place = newer.index(token_id)
        current, *following = self.following[place:]
        rotating = self.rotating and bool(following)
        return replace(self, current=current, following=tuple(following), rotating=rotating)

    def to_be_rotated(self) -> "NodeKeys":
        """Return the keys of a node that is to have another token."""
        return replace(self, rotating=True)

    def followed_by(self, fresh: FreshToken) -> "NodeKeys":
        """Return the keys with a new token beside those that the node may have stored."""
        return replace(self, following=(*self.following, _key(fresh))[-_MOST_FOLLOWING:])


def joined(fresh: FreshToken, token_id: str) -> NodeKeys:
    """Return the keys of a node that came by a join token; whatever proved it before does not any more."""
    return NodeKeys(current=_key(fresh), joined_by=token_id, spent=False)


def _key(fresh: FreshToken) -> NodeKey:
    return NodeKey(fresh.token_id, fresh.digest)
