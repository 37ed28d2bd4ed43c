"""Issues, lists, rotates and revokes tokens, and authenticates those that are presented.

A token's text is shown once, to the caller that asked for it, after its digest is stored. What a token
allows is the fleet's decision. At the first start `write_admin_token` leaves an admin token in the state
directory, because without one nobody could ever make another.
"""

import contextlib
import hashlib
import os
import re
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path

from gpu_agent.registry.actions import Refusal, Result
from gpu_agent.registry.credentials import Credential, CredentialKind, FreshToken, Role
from gpu_agent.registry.events import (
    JoinTokenRequested,
    OperatorRequest,
    OperatorTokenRequested,
    RevocationRequested,
    RotationRequested,
)
from gpu_agent.registry.fleet import Fleet
from gpu_agent.registry.tokens import Token, TokenState
from gpu_agent.runtime.logs import Logger
from gpu_agent.runtime.state_dir import OPERATOR_TOKEN_FILE, StateDirectoryError
from gpu_agent.server.clock import Clock
from gpu_agent.server.requests import as_refusal
from gpu_agent.wire.api import DAY_SECONDS, MAX_NOTE, MAX_TTL_SECONDS, MAX_USES, NewToken, TokenView

# Draws tokens and digests them: the one place where a secret is made. Keeps none.
#
# A token is `gpuj_…` (a node joins by it, or has its id back), `gpun_…` (one node, ever after) or `gpuo_…`
# (an operator), then its public id and its secret. Its digest is of the whole text, so that no part of a
# token that leaks by its digest can be exchanged; 256 bits that were drawn need no salt and no slowness.


PREFIXES = {CredentialKind.JOIN: "gpuj", CredentialKind.NODE: "gpun", CredentialKind.OPERATOR: "gpuo"}
LONGEST_TOKEN = 128
"""No token is longer than this; what is longer is not looked at."""

_ID_BYTES = 4
_SECRET_BYTES = 32


@dataclass(frozen=True, slots=True)
class GeneratedToken:
    """A token that was just drawn."""

    token_id: str
    text: str = field(repr=False)
    digest: str = field(repr=False)


def generate_token(kind: CredentialKind) -> GeneratedToken:
    """Draw a token."""
    token_id = secrets.token_hex(_ID_BYTES)
    text = f"{PREFIXES[kind]}_{token_id}_{secrets.token_urlsafe(_SECRET_BYTES)}"
    return GeneratedToken(token_id, text, digest_of(text))


def generate_node_token() -> FreshToken:
    """Draw a token for a node that registers, to be issued or forgotten by the fleet."""
    minted = generate_token(CredentialKind.NODE)
    return FreshToken(minted.token_id, minted.text, minted.digest)


def digest_of(text: str) -> str:
    """Return what a token is known by."""
    return hashlib.sha256(text.encode()).hexdigest()


# The desk where operators make, list, rotate and end tokens, and where presented ones are recognised.
#
# A secret is told once, to whoever asked for it, after its digest is kept; nobody can be told it again.
# Decides nothing: what a token allows is the fleet's to say.


_NODE_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")

Ask = Callable[[Callable[[int], OperatorRequest]], Awaitable[Result]]
"""Asks the fleet, and waits until what it answers is kept."""


class TokenService:
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
        if uses is not None and not 1 <= uses <= MAX_USES:
            raise ValueError(
                f"uses is {uses}; a join token is used 1 to {MAX_USES} times, or None for any number"
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
        minted: GeneratedToken | None = None,
    ) -> NewToken | Refusal:
        """Make a token for a person or a program, or keep one that was drawn before. Raises `ValueError`."""
        minted, seconds = minted or generate_token(CredentialKind.OPERATOR), _checked(ttl_seconds, name)
        result = await self._ask(
            lambda ref: OperatorTokenRequested(
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
        return as_refusal(await self._ask(lambda ref: RotationRequested(ref, node_id, at_once)))

    async def revoke(self, token_id: str) -> Refusal | None:
        """End a join or operator token; nodes that joined by it stay."""
        return as_refusal(await self._ask(lambda ref: RevocationRequested(ref, token_id)))

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
        minted, seconds = generate_token(CredentialKind.JOIN), _checked(ttl_seconds, note)
        result = await self._ask(
            lambda ref: JoinTokenRequested(
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

    def _told(self, minted: GeneratedToken, ttl_seconds: float | None, result: Result) -> NewToken | Refusal:
        if isinstance(result, Refusal):
            return result
        ends = None if ttl_seconds is None else round(self._clock.wall() + ttl_seconds, 3)
        return NewToken(token_id=minted.token_id, token=minted.text, expires_at=ends)

    def _view(self, token: Token) -> TokenView:
        return TokenView(
            token_id=token.token_id,
            kind=token.kind.value,
            state=token.state(self._clock.monotonic()).value,
            created_at=self._clock.wall_at(token.created_at),
            expires_at=self._wall(token.expires_at),
            revoked_at=self._wall(token.revoked_at),
            note=token.note,
            uses=token.uses,
            spent=token.spent,
            reserved=self._fleet.reserved(token.token_id),
            labels=dict(token.labels),
            node_id=token.node_id,
            role=token.role and token.role.value,
            name=token.name,
        )

    def _wall(self, moment: float | None) -> float | None:
        return None if moment is None else self._clock.wall_at(moment)


def _checked(ttl_seconds: float | None, note: str) -> float | None:
    """Return the time to live; raises `ValueError` for one, or a note, that nobody can mean."""
    if ttl_seconds is not None and not (isfinite(ttl_seconds) and 0 < ttl_seconds <= MAX_TTL_SECONDS):
        raise ValueError(
            f"ttl_seconds is {ttl_seconds:g}; a token lives from above 0 to {MAX_TTL_SECONDS:g} s, "
            "or None for ever"
        )
    if len(note) > MAX_NOTE:
        raise ValueError(f"a note or name has {len(note)} characters; it may have {MAX_NOTE}")
    return ttl_seconds


# The admin token of a registry's first start: without one nobody could ever make another.
#
# Made whenever no admin's token lives, and left in the state directory for whoever runs the registry.
# It is put down before it is kept: a crash in between leaves a file that opens nothing and that the next
# start replaces, never a token that nobody has. A file whose token lives is never overwritten.


FIRST_TOKEN_NAME = "first start"
_MODE = 0o600
_LOG = Logger("registry")


async def write_admin_token(desk: TokenService, folder: Path) -> None:
    """Make an admin token and leave it in the directory, where none lives; raises `StateDirectoryError`."""
    if any(token.role is Role.ADMIN and token.state is TokenState.LIVE for token in desk.listed()):
        return
    path = folder / OPERATOR_TOKEN_FILE
    if desk.authenticate(_read(path)) is not None:
        raise StateDirectoryError(
            f"{path} holds a token that lives but is no admin's, and no admin's token lives: "
            "move that file away and start again to be given one"
        )
    minted = generate_token(CredentialKind.OPERATOR)
    _write(path, minted.text)
    made = await desk.create_operator(Role.ADMIN, name=FIRST_TOKEN_NAME, minted=minted)
    if isinstance(made, Refusal):
        raise StateDirectoryError(f"the first operator token could not be kept: {made.message}")
    _LOG.warning("operator_token_written", file=str(path))


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(LONGEST_TOKEN + 1).strip().decode("ascii", "replace")
    except OSError:
        return ""


def _write(path: Path, text: str) -> None:
    """Write beside, flush to the disk, then put in place: for its owner alone, and never through a link."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
    try:
        with os.fdopen(os.open(beside, flags, _MODE), "w", encoding="ascii") as file:
            file.write(f"{text}\n")
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise StateDirectoryError(
            f"{path} cannot be written ({error.strerror or error}); make room on that disk or check its "
            "owner and permissions, or name another directory with --state-dir"
        ) from error
