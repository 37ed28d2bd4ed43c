"""The desk where operators make, list, rotate and end tokens, and where presented ones are recognised.

A secret is told once, to whoever asked for it, after its digest is kept; nobody can be told it again.
Decides nothing: what a token allows is the fleet's to say.
"""

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from math import isfinite

from gpu_agent.registry.actions import Refusal, Result
from gpu_agent.registry.credentials import Credential, CredentialKind, Role
from gpu_agent.registry.events import (
    Asked,
    JoinTokenMade,
    OperatorTokenMade,
    RotationAsked,
    TokenRevoked,
)
from gpu_agent.registry.fleet import Fleet
from gpu_agent.registry.tokens import Token, TokenState
from gpu_agent.server.asking import refusal
from gpu_agent.server.clock import Clock
from gpu_agent.server.minting import LONGEST_TOKEN, Minted, digest_of, mint

DAY_SECONDS = 86_400.0
LONGEST_TTL_SECONDS = 3_650 * DAY_SECONDS
LONGEST_NOTE = 200
MOST_USES = 1_000_000

_NODE_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")

Ask = Callable[[Callable[[int], Asked]], Awaitable[Result]]
"""Asks the fleet, and waits until what it answers is kept."""


@dataclass(frozen=True, slots=True)
class NewToken:
    """A token that was made; its text is told this once."""

    token_id: str
    token: str = field(repr=False)
    expires_at: float | None
    """Unix time; None when it does not expire."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenView:
    """A join or operator token as operators see it. Times are Unix times."""

    token_id: str
    kind: CredentialKind
    state: TokenState
    created_at: float
    expires_at: float | None
    revoked_at: float | None
    note: str
    uses: int | None
    """How many nodes may join by it; None for any number."""
    spent: int
    """How many have: a node counts from its first beat."""
    reserved: int
    """How many have registered and not beaten yet; one that is gone yields to the next."""
    labels: Mapping[str, str]
    node_id: str | None
    """The only id that may be had by it; None for every other token."""
    role: Role | None
    name: str


class TokenDesk:
    """One registry's tokens. What was asked for and could not be kept is undone and refused."""

    def __init__(self, fleet: Fleet, ask: Ask, *, clock: Clock) -> None:
        self._fleet = fleet
        self._ask = ask
        self._clock = clock

    async def create_join(
        self,
        *,
        ttl_seconds: float | None = DAY_SECONDS,
        uses: int | None = 1,
        labels: Mapping[str, str] | None = None,
        note: str = "",
        node_id: str | None = None,
    ) -> NewToken | Refusal:
        """Make a token by which nodes join; the labels are theirs for good. Raises `ValueError`.

        With `node_id` only that node may come by it, known or not. So a node that keeps no token of its
        own (§9) is served: by one that has any number of uses.
        """
        if uses is not None and not 1 <= uses <= MOST_USES:
            raise ValueError(
                f"uses is {uses}; a join token is used 1 to {MOST_USES} times, or None for any number"
            )
        if node_id is not None and not _NODE_ID.fullmatch(node_id):
            raise ValueError(f"{node_id!r} is no node id: up to 128 of A-Z a-z 0-9 . _ -")
        granted = dict(labels or {})
        return await self._join(
            ttl_seconds, uses=uses, labels=granted, note=note, node_id=node_id, reclaims=False
        )

    async def reclaim(self, node_id: str, *, ttl_seconds: float | None = DAY_SECONDS) -> NewToken | Refusal:
        """Make a token that gives a node that lost its state its id back, once. Raises `ValueError`."""
        return await self._join(ttl_seconds, node_id=node_id)

    async def create_operator(
        self,
        role: Role,
        *,
        name: str = "",
        ttl_seconds: float | None = None,
        minted: Minted | None = None,
    ) -> NewToken | Refusal:
        """Make a token for a person or a program, or keep one that was drawn before. Raises `ValueError`."""
        minted, seconds = minted or mint(CredentialKind.OPERATOR), _checked(ttl_seconds, name)
        result = await self._ask(
            lambda ref: OperatorTokenMade(
                ref=ref,
                token_id=minted.token_id,
                digest=minted.digest,
                role=role,
                ttl_seconds=seconds,
                name=name,
            )
        )
        return self._told(minted, seconds, result)

    async def rotate(self, node_id: str, *, at_once: bool = False) -> Refusal | None:
        """Give a node another token; `at_once` ends the old one before the node has the new one."""
        return refusal(await self._ask(lambda ref: RotationAsked(ref, node_id, at_once)))

    async def revoke(self, token_id: str) -> Refusal | None:
        """End a join or operator token; nodes that joined by it stay."""
        return refusal(await self._ask(lambda ref: TokenRevoked(ref, token_id)))

    def listed(self) -> tuple[TokenView, ...]:
        """Show every join and operator token, the oldest first; nodes' own are not among them."""
        return tuple(self._view(token) for token in self._fleet.tokens())

    def authenticate(self, text: str) -> Credential | None:
        """Say what a presented token stands for now; None when it opens nothing."""
        if not text or len(text) > LONGEST_TOKEN or not text.isascii():
            return None
        return self._fleet.credential(digest_of(text), self._clock.monotonic())

    def is_used_up(self, credential: Credential) -> bool:
        """Say whether as many nodes have joined by this token as may."""
        token = self._fleet.token(credential.token_id)
        return token is not None and token.state(self._clock.monotonic()) is TokenState.USED_UP

    def uses_of(self, credential: Credential) -> int | None:
        """Return how many nodes may join by this token; None for any number, and for a node's own."""
        token = self._fleet.token(credential.token_id)
        return None if token is None else token.uses

    def name_of(self, credential: Credential) -> str:
        """Return the name that an operator's token was given."""
        token = self._fleet.token(credential.token_id)
        return "" if token is None else token.name

    async def _join(
        self,
        ttl_seconds: float | None,
        *,
        uses: int | None = 1,
        labels: Mapping[str, str] | None = None,
        note: str = "",
        node_id: str | None = None,
        reclaims: bool = True,
    ) -> NewToken | Refusal:
        minted, seconds = mint(CredentialKind.JOIN), _checked(ttl_seconds, note)
        result = await self._ask(
            lambda ref: JoinTokenMade(
                ref=ref,
                token_id=minted.token_id,
                digest=minted.digest,
                ttl_seconds=seconds,
                uses=uses,
                labels=labels or {},
                note=note,
                node_id=node_id,
                reclaims=reclaims,
            )
        )
        return self._told(minted, seconds, result)

    def _told(self, minted: Minted, ttl_seconds: float | None, result: Result) -> NewToken | Refusal:
        if isinstance(result, Refusal):
            return result
        ends = None if ttl_seconds is None else round(self._clock.wall() + ttl_seconds, 3)
        return NewToken(minted.token_id, minted.text, ends)

    def _view(self, token: Token) -> TokenView:
        return TokenView(
            token_id=token.token_id,
            kind=token.kind,
            state=token.state(self._clock.monotonic()),
            created_at=self._clock.wall_at(token.created_at),
            expires_at=self._wall(token.expires_at),
            revoked_at=self._wall(token.revoked_at),
            note=token.note,
            uses=token.uses,
            spent=token.spent,
            reserved=self._fleet.reserved(token.token_id),
            labels=dict(token.labels),
            node_id=token.node_id,
            role=token.role,
            name=token.name,
        )

    def _wall(self, moment: float | None) -> float | None:
        return None if moment is None else self._clock.wall_at(moment)


def _checked(ttl_seconds: float | None, note: str) -> float | None:
    """Return the time to live; raises `ValueError` for one, or a note, that nobody can mean."""
    if ttl_seconds is not None and not (isfinite(ttl_seconds) and 0 < ttl_seconds <= LONGEST_TTL_SECONDS):
        raise ValueError(
            f"ttl_seconds is {ttl_seconds:g}; a token lives from above 0 to {LONGEST_TTL_SECONDS:g} s, "
            "or None for ever"
        )
    if len(note) > LONGEST_NOTE:
        raise ValueError(f"a note or name has {len(note)} characters; it may have {LONGEST_NOTE}")
    return ttl_seconds
