"""What a presented token stands for, and what operators may do with theirs. Values only.

A token's text is a secret of the shell's: here it is known by the digest that the shell made of it.
"""

from dataclasses import dataclass, field
from enum import StrEnum


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
