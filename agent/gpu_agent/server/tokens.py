"""Issues, lists, rotates and revokes tokens, and authenticates those that are presented.

A token is `gpuj_…` (a node joins by it, or takes its id back), `gpun_…` (one node's own), `gpuo_…` (an
operator's) or `gpus_…` (a session of the fleet page), then its public id and its secret. The stored digest is
of the whole text; 256 random bits need no salt and no slow hash. A token's text is shown once, to the caller
that asked for it, after its digest is stored. What a token allows is the fleet's decision.
"""

import contextlib
import hashlib
import os
import re
import secrets
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path

from gpu_agent.registry.actions import Refusal, Result, as_refusal
from gpu_agent.registry.events import (
    JoinTokenRequested,
    OperatorRequest,
    OperatorTokenRequested,
    RevocationRequested,
    RotationRequested,
    SessionRequested,
)
from gpu_agent.registry.fleet import Fleet
from gpu_agent.registry.token_issuing import SESSION_SECONDS
from gpu_agent.registry.tokens import Credential, CredentialKind, FreshToken, Role, Token, TokenState
from gpu_agent.runtime.logs import Logger
from gpu_agent.runtime.state_dir import OPERATOR_TOKEN_FILE, StateDirectoryError
from gpu_agent.server.limits import Rate
from gpu_agent.server.views import Clock
from gpu_agent.wire.api import (
    DAY_SECONDS,
    MAX_NOTE,
    MAX_TTL_SECONDS,
    MAX_USES,
    NewToken,
    SignInLink,
    TokenView,
)
from gpu_agent.wire.codes import NODE_ID_PATTERN

PREFIXES = {
    CredentialKind.JOIN: "gpuj",
    CredentialKind.NODE: "gpun",
    CredentialKind.OPERATOR: "gpuo",
    CredentialKind.SESSION: "gpus",
}
MAX_TOKEN_LENGTH = 128
"""No token is longer than this; a longer text is not looked up."""
SIGN_IN_SECONDS = 300.0
"""How long the link of a sign-in is good."""
_MOST_CODES = 5
"""Of one operator token: a new link replaces that token's oldest, and nobody else's."""
SIGN_INS = Rate.of(per_second=10 / 60, burst=10)
"""How often a person may sign in with one operator token: each session is stored."""
FIRST_ADMIN = "first start"

_ID_BYTES = 4
_SECRET_BYTES = 32
_FILE_MODE = 0o600
_LOG = Logger("registry")

SendRequest = Callable[[OperatorRequest], Awaitable[Result]]
"""Sends a request to the fleet, and waits for its answer, which comes once its changes are stored."""


@dataclass(frozen=True, slots=True)
class GeneratedToken:
    """A new random token."""

    token_id: str
    text: str = field(repr=False)
    digest: str = field(repr=False)


class SignInCodes:
    """Codes of links by which a browser begins a session, once each and soon; kept in memory alone."""

    def __init__(self) -> None:
        self._made: dict[str, tuple[float, Credential]] = {}
        """By the digest of a code: until when it is good, in monotonic seconds, and for whom."""

    def make(self, credential: Credential, now: float) -> str:
        """Return a new code; of too many for one token its oldest is forgotten."""
        self._made = {digest: made for digest, made in self._made.items() if made[0] > now}
        own = [digest for digest, (_, who) in self._made.items() if who.token_id == credential.token_id]
        for oldest in own[: 1 - _MOST_CODES]:
            del self._made[oldest]
        code = secrets.token_urlsafe(_SECRET_BYTES)
        self._made[digest_of(code)] = now + SIGN_IN_SECONDS, credential
        return code

    def find(self, code: str, now: float) -> Credential | None:
        """Return for whom a code is; None where it is none, or too old."""
        ends, credential = self._made.get(presented_digest(code), (now, None))
        return credential if ends > now else None

    def take(self, code: str, now: float) -> Credential | None:
        """Return for whom a code is, which then is good no more; None where it is none, or too old."""
        credential = self.find(code, now)
        self._made.pop(presented_digest(code), None)
        return credential


class TokenService:
    """The tokens of one registry."""

    def __init__(self, fleet: Fleet, send: SendRequest, *, refs: Iterator[int], clock: Clock) -> None:
        self._fleet = fleet
        self._send = send
        self._refs = refs
        """Draws the number of each request."""
        self._clock = clock
        self._codes = SignInCodes()
        self._sign_ins: dict[str, float] = {}
        """By operator token: until when its allowance (`SIGN_INS`) is not whole."""

    async def create_join(
        self,
        *,
        ttl_seconds: float | None = DAY_SECONDS,
        uses: int | None = 1,
        labels: Mapping[str, str] | None = None,
        note: str = "",
        node_id: str | None = None,
    ) -> NewToken | Refusal:
        """Create a token with which nodes join; they keep its labels. Raises `ValueError`.

        With `node_id` only that node may use it, known or not. A node that stores no token of its own (§9)
        needs such a token with any number of uses.
        """
        if uses is not None and not 1 <= uses <= MAX_USES:
            raise ValueError(
                f"uses is {uses}; a join token is used 1 to {MAX_USES} times, or None for any number"
            )
        if node_id is not None and not re.fullmatch(NODE_ID_PATTERN, node_id):
            raise ValueError(f"{node_id!r} is no node id: up to 128 of A-Z a-z 0-9 . _ -")
        granted = dict(labels or {})
        return await self._join(
            ttl_seconds, uses=uses, labels=granted, note=note, node_id=node_id, reclaims=False
        )

    async def reclaim(self, node_id: str, *, ttl_seconds: float | None = DAY_SECONDS) -> NewToken | Refusal:
        """Create a token with which a node that lost its state takes its id back. Raises `ValueError`."""
        return await self._join(ttl_seconds, node_id=node_id)

    async def create_operator(
        self,
        role: Role,
        *,
        name: str = "",
        ttl_seconds: float | None = None,
        generated: GeneratedToken | None = None,
    ) -> NewToken | Refusal:
        """Create a token for a person or a program; `generated` may be given. Raises `ValueError`."""
        generated, seconds = generated or generate_token(CredentialKind.OPERATOR), _checked(ttl_seconds, name)
        result = await self._send(
            OperatorTokenRequested(
                ref=next(self._refs),
                token_id=generated.token_id,
                digest=generated.digest,
                role=role,
                ttl_seconds=seconds,
                name=name,
            )
        )
        return self._new_token(generated, seconds, result)

    def may_sign_in(self, parent: Credential) -> bool:
        """Count a sign-in with an operator token; False where there were too many within a minute."""
        now = self._clock.monotonic()
        self._sign_ins = {name: until for name, until in self._sign_ins.items() if until > now}
        until = SIGN_INS.consume(self._sign_ins.get(parent.token_id, 0.0), now, 1)
        if until is None:
            return False
        self._sign_ins[parent.token_id] = until
        return True

    async def begin_session(self, parent: Credential) -> NewToken | Refusal:
        """Create a session of the operator token with which a person signed in to the fleet page."""
        generated = generate_token(CredentialKind.SESSION)
        request = SessionRequested(
            ref=next(self._refs),
            token_id=generated.token_id,
            digest=generated.digest,
            parent=parent.token_id,
        )
        return self._new_token(generated, SESSION_SECONDS, await self._send(request))

    def create_sign_in_link(self, parent: Credential | None) -> SignInLink:
        """Create the link by which a browser of this machine begins a session of an operator token, once.

        With auth off there is no token, and the link is the page itself.
        """
        if parent is None:
            return SignInLink(path="/", expires_at=None)
        code = self._codes.make(parent, self._clock.monotonic())
        ends = round(self._clock.wall() + SIGN_IN_SECONDS, 3)
        return SignInLink(path=f"/signin?code={code}", expires_at=ends)

    def find_sign_in_code(self, code: str) -> Credential | None:
        """Return whose link this code is from, and leave it as it is."""
        return self._codes.find(code, self._clock.monotonic())

    def take_sign_in_code(self, code: str) -> Credential | None:
        """Return whose link this code is from, once; `begin_session` refuses a token that has ended."""
        return self._codes.take(code, self._clock.monotonic())

    async def rotate(self, node_id: str, *, revoke_now: bool = False) -> Refusal | None:
        """Issue a node a new token; `revoke_now` revokes the old one before the node has the new one."""
        return as_refusal(await self._send(RotationRequested(next(self._refs), node_id, revoke_now)))

    async def revoke(self, token_id: str) -> Refusal | None:
        """Revoke a join or operator token; nodes that joined with it stay."""
        return as_refusal(await self._send(RevocationRequested(next(self._refs), token_id)))

    def known(self, token_id: str) -> bool:
        """Whether there is a join or operator token of this id."""
        return self._fleet.token(token_id) is not None

    def all(self) -> tuple[TokenView, ...]:
        """Return every join and operator token, the oldest first; nodes' own are not included."""
        return tuple(self._view(token) for token in self._fleet.tokens())

    def authenticate(self, text: str) -> Credential | None:
        """Return the credential of a presented token; None where it is not valid."""
        return self.credential(presented_digest(text))

    def credential(self, digest: str) -> Credential | None:
        """Return the credential whose token has this digest; None where it is not valid."""
        return self._fleet.credential(digest, self._clock.monotonic())

    def is_used_up(self, credential: Credential) -> bool:
        """Whether as many nodes have joined with this token as may."""
        token = self._fleet.token(credential.token_id)
        return token is not None and token.state(self._clock.monotonic()) is TokenState.USED_UP

    def max_uses(self, credential: Credential) -> int | None:
        """Return how many nodes may join with this token; None for any number, and for a node's own."""
        token = self._fleet.token(credential.token_id)
        return None if token is None else token.uses

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
        generated, seconds = generate_token(CredentialKind.JOIN), _checked(ttl_seconds, note)
        result = await self._send(
            JoinTokenRequested(
                ref=next(self._refs),
                token_id=generated.token_id,
                digest=generated.digest,
                ttl_seconds=seconds,
                uses=uses,
                labels=labels or {},
                note=note,
                node_id=node_id,
                reclaims=reclaims,
            )
        )
        return self._new_token(generated, seconds, result)

    def _new_token(
        self, generated: GeneratedToken, ttl_seconds: float | None, result: Result
    ) -> NewToken | Refusal:
        if isinstance(result, Refusal):
            return result
        ends = None if ttl_seconds is None else round(self._clock.wall() + ttl_seconds, 3)
        return NewToken(token_id=generated.token_id, token=generated.text, expires_at=ends)

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
            parent=token.parent,
        )

    def _wall(self, moment: float | None) -> float | None:
        return None if moment is None else self._clock.wall_at(moment)


def generate_token(kind: CredentialKind) -> GeneratedToken:
    """Generate a token."""
    token_id = secrets.token_hex(_ID_BYTES)
    text = f"{PREFIXES[kind]}_{token_id}_{secrets.token_urlsafe(_SECRET_BYTES)}"
    return GeneratedToken(token_id, text, digest_of(text))


def generate_node_token() -> FreshToken:
    """Generate a token for a node that registers; the fleet issues it or drops it."""
    generated = generate_token(CredentialKind.NODE)
    return FreshToken(generated.token_id, generated.text, generated.digest)


def digest_of(text: str) -> str:
    """Return the digest that is stored for a token."""
    return hashlib.sha256(text.encode()).hexdigest()


def presented_digest(text: str) -> str:
    """Return the digest of what a peer presents as a token; empty, no token's, where it cannot be one."""
    return digest_of(text) if text.isascii() and 0 < len(text) <= MAX_TOKEN_LENGTH else ""


async def write_admin_token(tokens: TokenService, folder: Path) -> None:
    """Write a new admin token to `folder` where no admin token is valid; raises `StateDirectoryError`.

    Without one, no other could ever be created. The file is written before the token is stored: a crash in
    between leaves a file with no valid token, which the next start replaces. A file whose token is valid is
    never replaced.
    """
    if any(_is_admin(token) and token.state == TokenState.LIVE.value for token in tokens.all()):
        return
    path = folder / OPERATOR_TOKEN_FILE
    if tokens.authenticate(_read_token(path)) is not None:
        raise StateDirectoryError(
            f"{path} holds a valid token that is not an admin's, and no admin token is valid: "
            "move that file away and start again to get one"
        )
    generated = generate_token(CredentialKind.OPERATOR)
    _write_token(path, generated.text)
    made = await tokens.create_operator(Role.ADMIN, name=FIRST_ADMIN, generated=generated)
    if isinstance(made, Refusal):
        raise StateDirectoryError(f"the first operator token could not be stored: {made.message}")
    _LOG.warning("operator_token_written", file=str(path))


def _is_admin(token: TokenView) -> bool:
    return token.kind == CredentialKind.OPERATOR.value and token.role == Role.ADMIN.value


def _checked(ttl_seconds: float | None, note: str) -> float | None:
    """Return the time to live; raises `ValueError` for one, or a note, beyond the limits."""
    if ttl_seconds is not None and not (isfinite(ttl_seconds) and 0 < ttl_seconds <= MAX_TTL_SECONDS):
        raise ValueError(
            f"ttl_seconds is {ttl_seconds:g}; a token lives from above 0 to {MAX_TTL_SECONDS:g} s, "
            "or None for ever"
        )
    if len(note) > MAX_NOTE:
        raise ValueError(f"a note or name has {len(note)} characters; it may have {MAX_NOTE}")
    return ttl_seconds


def _read_token(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(MAX_TOKEN_LENGTH + 1).strip().decode("ascii", "replace")
    except OSError:
        return ""


def _write_token(path: Path, text: str) -> None:
    """Write a temporary file for the owner alone, flush it to the disk, and rename it; follows no link."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
    try:
        with os.fdopen(os.open(temporary, flags, _FILE_MODE), "w", encoding="ascii") as file:
            file.write(f"{text}\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise StateDirectoryError(
            f"{path} cannot be written ({error.strerror or error}); make room on that disk or check its "
            "owner and permissions, or name another directory with --state-dir"
        ) from error
