import hashlib
import re

import pytest

from gpu_agent.registry.credentials import CredentialKind
from gpu_agent.server.minting import LONGEST_TOKEN, PREFIXES, digest_of, fresh_node_token, mint


@pytest.mark.parametrize("kind", CredentialKind)
def test_a_token_says_whom_it_is_for_and_its_id_and_ends_in_256_drawn_bits(kind: CredentialKind) -> None:
    minted = mint(kind)
    assert re.fullmatch(rf"{PREFIXES[kind]}_{minted.token_id}_[A-Za-z0-9_-]{{43}}", minted.text)
    assert re.fullmatch(r"[0-9a-f]{8}", minted.token_id)
    assert len(minted.text) <= LONGEST_TOKEN


def test_a_token_is_known_by_the_sha_256_of_its_whole_text() -> None:
    minted = mint(CredentialKind.JOIN)
    assert minted.digest == digest_of(minted.text) == hashlib.sha256(minted.text.encode()).hexdigest()


def test_no_two_tokens_are_alike_and_none_shows_its_secret() -> None:
    first, second = mint(CredentialKind.OPERATOR), mint(CredentialKind.OPERATOR)
    assert first.text != second.text
    assert first.text not in repr(first)
    assert first.digest not in repr(first)


def test_a_fresh_node_token_is_one_of_a_node() -> None:
    fresh = fresh_node_token()
    assert fresh.text.startswith(f"gpun_{fresh.token_id}_")
    assert fresh.digest == digest_of(fresh.text)
