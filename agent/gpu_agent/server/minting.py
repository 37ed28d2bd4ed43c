"""Draws tokens and digests them: the one place where a secret is made. Keeps none.

A token is `gpuj_…` (a node joins by it, or has its id back), `gpun_…` (one node, ever after) or `gpuo_…`
(an operator), then its public id and its secret. Its digest is of the whole text, so that no part of a
token that leaks by its digest can be exchanged; 256 bits that were drawn need no salt and no slowness.
"""

import hashlib
import secrets
from dataclasses import dataclass, field

from gpu_agent.registry.credentials import CredentialKind, FreshToken

PREFIXES = {CredentialKind.JOIN: "gpuj", CredentialKind.NODE: "gpun", CredentialKind.OPERATOR: "gpuo"}
LONGEST_TOKEN = 128
"""No token is longer than this; what is longer is not looked at."""

_ID_BYTES = 4
_SECRET_BYTES = 32


@dataclass(frozen=True, slots=True)
class Minted:
    """A token that was just drawn."""

    token_id: str
    text: str = field(repr=False)
    digest: str = field(repr=False)


def mint(kind: CredentialKind) -> Minted:
    """Draw a token."""
    token_id = secrets.token_hex(_ID_BYTES)
    text = f"{PREFIXES[kind]}_{token_id}_{secrets.token_urlsafe(_SECRET_BYTES)}"
    return Minted(token_id, text, digest_of(text))


def fresh_node_token() -> FreshToken:
    """Draw a token for a node that registers, to be issued or forgotten by the fleet."""
    minted = mint(CredentialKind.NODE)
    return FreshToken(minted.token_id, minted.text, minted.digest)


def digest_of(text: str) -> str:
    """Return what a token is known by."""
    return hashlib.sha256(text.encode()).hexdigest()
