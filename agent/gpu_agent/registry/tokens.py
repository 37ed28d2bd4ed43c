"""Every token that opens the registry, found by its digest: those of operators, of joining nodes, and of nodes.

Join and operator tokens are stored here; a node's tokens are part of its record and only found here.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from gpu_agent.registry.credentials import Credential, CredentialKind, NodeTokens, Role
from gpu_agent.registry.deadlines import Deadlines
from gpu_agent.registry.node import NodeRecord


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
    """How many have: a node counts from its first beat."""
    used_up_at: float | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    """Granted to the nodes that join by it."""
    node_id: str | None = None
    """The only id that may be had by it; None for any."""
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
        """When it opens, or opened, nothing any more; None while that is not known."""
        ends = (self.revoked_at, self.expires_at, self.used_up_at)
        return min((end for end in ends if end is not None), default=None)

    def used(self, now: float) -> "Token":
        """Return it as it is once one more node has come by it."""
        spent = self.spent + 1
        return replace(self, spent=spent, used_up_at=now if spent == self.uses else self.used_up_at)

    def revoked(self, now: float) -> "Token":
        """Return it as it is once it was revoked."""
        return replace(self, revoked_at=now)

    @property
    def credential(self) -> Credential:
        """What it stands for when it is presented."""
        return Credential(self.kind, self.token_id, self.node_id, self.role)


_RECOGNISED_NO_MORE = frozenset({TokenState.EXPIRED, TokenState.REVOKED})
"""One that is used up is recognised: who comes with it is told so when it registers."""


class TokenTable:
    """Join and operator tokens by their id, and all tokens by their digest."""

    def __init__(self, kept_after_end_seconds: float) -> None:
        self.by_id: dict[str, Token] = {}
        self._kept_after_end_seconds = kept_after_end_seconds
        self._purges = Deadlines()
        self._by_digest: dict[str, Token] = {}
        self._node_of: dict[str, tuple[str, str]] = {}
        """By digest: the node and the token's id."""
        self._keys: dict[str, NodeTokens] = {}
        """By node: the keys that are found here."""
        self._reserved: dict[str, dict[str, None]] = {}
        """By join token: the nodes that came by it and have not beaten yet."""

    @property
    def deadline(self) -> float | None:
        """When a token may be forgotten; None while none has an end."""
        return self._purges.earliest

    def put(self, token: Token) -> None:
        """Know a token from now on, or know it anew."""
        self.by_id[token.token_id] = token
        self._by_digest[token.digest] = token
        if token.ended_at is not None:
            self._purges.at(token.token_id, token.ended_at + self._kept_after_end_seconds)

    def drop(self, token_id: str) -> None:
        """Know a token no longer."""
        token = self.by_id.pop(token_id, None)
        if token is not None:
            del self._by_digest[token.digest]
            self._purges.forget(token_id)

    def purge(self, now: float) -> list[str]:
        """Forget the tokens that ended long ago; returns their ids."""
        gone = []
        for token_id in list(self._purges.reached(now)):
            ended_at = self.by_id[token_id].ended_at
            if ended_at is not None and ended_at + self._kept_after_end_seconds <= now:
                self.drop(token_id)
                gone.append(token_id)
            else:
                self.put(self.by_id[token_id])
        return gone

    def reserved(self, token_id: str) -> Collection[str]:
        """Return the nodes that came by a join token and have not beaten yet."""
        return self._reserved.get(token_id, ())

    def fit(self, record: NodeRecord) -> None:
        """Find a node by the keys that it has now, and by none that it had."""
        if self._keys.get(record.node_id) is record.keys:
            return
        self.forget(record.node_id)
        self._keys[record.node_id] = record.keys
        for key in record.keys.all:
            self._node_of[key.digest] = (record.node_id, key.token_id)
        if record.keys.joined_by is not None and not record.keys.spent:
            self._reserved.setdefault(record.keys.joined_by, {})[record.node_id] = None

    def forget(self, node_id: str) -> None:
        """Find a node no longer."""
        keys = self._keys.pop(node_id, None)
        if keys is None:
            return
        for key in keys.all:
            self._node_of.pop(key.digest, None)
        reserved = self._reserved.get(keys.joined_by or "")
        if reserved is not None:
            reserved.pop(node_id, None)
            if not reserved:
                del self._reserved[keys.joined_by or ""]

    def credential(self, digest: str, now: float) -> Credential | None:
        """Return what the token of this digest stands for now; None when it opens nothing."""
        token = self._by_digest.get(digest)
        if token is not None:
            return None if token.state(now) in _RECOGNISED_NO_MORE else token.credential
        found = self._node_of.get(digest)
        if found is None:
            return None
        node_id, token_id = found
        return Credential(CredentialKind.NODE, token_id, node_id)
