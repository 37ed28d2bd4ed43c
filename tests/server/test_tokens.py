"""The desk of a registry that runs."""

import hashlib
import re
import stat
import time
from collections.abc import AsyncIterator
from math import inf, nan
from pathlib import Path

import pytest

from gpu_agent.registry.actions import Refusal
from gpu_agent.registry.tokens import Credential, CredentialKind, Role
from gpu_agent.runtime.state_dir import OPERATOR_TOKEN_FILE, StateDirectoryError
from gpu_agent.server.service import RegistryService
from gpu_agent.server.tokens import (
    FIRST_ADMIN,
    MAX_TOKEN_LENGTH,
    PREFIXES,
    digest_of,
    generate_node_token,
    generate_token,
    write_admin_token,
)
from gpu_agent.store.memory import MemoryStore
from gpu_agent.wire.api import MAX_NOTE, MAX_TTL_SECONDS, NewToken
from tests.server.disks import FailingStore
from tests.server.harness import node, running, until


def made(result: NewToken | Refusal) -> NewToken:
    assert isinstance(result, NewToken)
    return result


async def test_a_join_token_authenticates_and_is_listed_without_its_secret(service: RegistryService) -> None:
    new = made(await service.tokens.create_join(ttl_seconds=60, uses=3, labels={"zone": "b"}, note="rack 4"))
    assert new.token.startswith(f"gpuj_{new.token_id}_")
    assert new.expires_at is not None
    assert abs(new.expires_at - time.time() - 60) < 5
    assert service.tokens.authenticate(new.token) == Credential(CredentialKind.JOIN, new.token_id)
    (listed,) = service.tokens.all()
    assert (listed.token_id, listed.kind, listed.state) == (new.token_id, "join", "live")
    assert (listed.uses, listed.spent, listed.labels, listed.note) == (3, 0, {"zone": "b"}, "rack 4")
    assert listed.expires_at is not None
    assert abs(listed.expires_at - new.expires_at) < 1
    assert new.token.split("_", 2)[2] not in repr(listed)
    assert new.token not in repr(new)


async def test_an_operator_token_carries_its_role_until_it_is_revoked(service: RegistryService) -> None:
    new = made(await service.tokens.create_operator(Role.OPERATE, name="night shift"))
    assert new.expires_at is None
    assert service.tokens.authenticate(new.token) == Credential(
        CredentialKind.OPERATOR, new.token_id, role=Role.OPERATE, name="night shift"
    )
    assert await service.tokens.revoke(new.token_id) is None
    assert service.tokens.authenticate(new.token) is None
    (listed,) = service.tokens.all()
    assert (listed.state, listed.name, listed.role) == ("revoked", "night shift", Role.OPERATE)
    assert listed.revoked_at is not None


async def test_an_impossible_request_is_refused_with_a_code(service: RegistryService) -> None:
    refusals = [
        await service.tokens.revoke("12345678"),
        await service.tokens.reclaim("node-x"),
        await service.tokens.rotate("node-x"),
    ]
    assert [one.code for one in refusals if isinstance(one, Refusal)] == [
        "UNKNOWN_TOKEN",
        "UNKNOWN_NODE",
        "UNKNOWN_NODE",
    ]


async def test_a_reclaim_token_is_bound_to_its_node(service: RegistryService) -> None:
    async with node(service) as known:
        await known.register()
        new = made(await service.tokens.reclaim(known.node_id, ttl_seconds=60))
        assert service.tokens.authenticate(new.token) == Credential(
            CredentialKind.JOIN, new.token_id, known.node_id
        )


async def test_a_token_bound_to_one_node_serves_it_again_and_again_and_no_other(
    service: RegistryService,
) -> None:
    new = made(await service.tokens.create_join(uses=None, node_id="node-7"))
    assert service.tokens.authenticate(new.token) == Credential(CredentialKind.JOIN, new.token_id, "node-7")
    with pytest.raises(ValueError, match="no node id"):
        await service.tokens.create_join(node_id="node 7")


@pytest.mark.parametrize("text", ["", "gpuo_12345678_wrong", "x" * 10_000, "gpuö", "\ud800"])
async def test_a_text_that_is_no_token_of_ours_is_not_valid(service: RegistryService, text: str) -> None:
    assert service.tokens.authenticate(text) is None


@pytest.mark.parametrize("seconds", [0.0, -1.0, nan, inf, MAX_TTL_SECONDS + 1])
async def test_a_time_to_live_out_of_bounds_is_an_error(service: RegistryService, seconds: float) -> None:
    with pytest.raises(ValueError, match="ttl_seconds"):
        await service.tokens.create_join(ttl_seconds=seconds)


async def test_uses_and_notes_have_bounds(service: RegistryService) -> None:
    with pytest.raises(ValueError, match="uses is 0"):
        await service.tokens.create_join(uses=0)
    with pytest.raises(ValueError, match="characters"):
        await service.tokens.create_operator(Role.READ, name="x" * (MAX_NOTE + 1))


async def test_a_token_that_cannot_be_stored_is_never_sent() -> None:
    store = FailingStore()
    async with running(store=store) as service:
        store.full = True
        refused = await service.tokens.create_join()
        assert isinstance(refused, Refusal)
        assert service.tokens.all() == ()
        store.full = False
        await until(lambda: service.store_problem is None, what="a store that answers again")
        assert store.load().changes == []


async def test_tokens_outlive_a_restart_and_their_time_goes_on() -> None:
    store = MemoryStore()
    store.close = lambda: None  # type: ignore[method-assign]  # the next registry opens the same one
    async with running(store=store) as service:
        new = made(await service.tokens.create_join(ttl_seconds=60))
    async with running(store=store) as service:
        assert service.tokens.authenticate(new.token) is not None
        (listed,) = service.tokens.all()
        assert listed.expires_at == pytest.approx(new.expires_at, abs=1)


@pytest.mark.parametrize("kind", CredentialKind)
def test_a_token_names_its_kind_and_id_and_ends_in_256_random_bits(kind: CredentialKind) -> None:
    generated = generate_token(kind)
    assert re.fullmatch(rf"{PREFIXES[kind]}_{generated.token_id}_[A-Za-z0-9_-]{{43}}", generated.text)
    assert re.fullmatch(r"[0-9a-f]{8}", generated.token_id)
    assert len(generated.text) <= MAX_TOKEN_LENGTH


def test_the_digest_is_the_sha_256_of_the_whole_text() -> None:
    generated = generate_token(CredentialKind.JOIN)
    assert (
        generated.digest == digest_of(generated.text) == hashlib.sha256(generated.text.encode()).hexdigest()
    )


def test_no_two_tokens_are_alike_and_none_shows_its_secret() -> None:
    first, second = generate_token(CredentialKind.OPERATOR), generate_token(CredentialKind.OPERATOR)
    assert first.text != second.text
    assert first.text not in repr(first)
    assert first.digest not in repr(first)


def test_a_generated_node_token_is_a_nodes() -> None:
    fresh = generate_node_token()
    assert fresh.text.startswith(f"gpun_{fresh.token_id}_")
    assert fresh.digest == digest_of(fresh.text)


# The first start of a registry that runs, with a true state directory.


@pytest.fixture
async def registry() -> AsyncIterator[RegistryService]:
    async with running(auth_on=True) as registry:
        yield registry


def left(folder: Path) -> str:
    return (folder / OPERATOR_TOKEN_FILE).read_text(encoding="ascii").strip()


def names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def recognised(registry: RegistryService, folder: Path) -> Credential | None:
    return registry.tokens.authenticate(left(folder))


async def test_the_first_start_writes_an_admin_token_for_its_owner_alone(
    registry: RegistryService, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await write_admin_token(registry.tokens, tmp_path)
    credential = recognised(registry, tmp_path)
    assert credential is not None
    assert (credential.kind, credential.role) == (CredentialKind.OPERATOR, Role.ADMIN)
    assert credential.name == FIRST_ADMIN
    assert stat.S_IMODE((tmp_path / OPERATOR_TOKEN_FILE).stat().st_mode) == 0o600
    assert names_in(tmp_path) == [OPERATOR_TOKEN_FILE]
    written = [record for record in caplog.records if record.getMessage() == "operator_token_written"]
    assert [record.__dict__["fields"] for record in written] == [
        {"file": str(tmp_path / OPERATOR_TOKEN_FILE)}
    ]


async def test_while_it_is_valid_a_start_changes_nothing(registry: RegistryService, tmp_path: Path) -> None:
    await write_admin_token(registry.tokens, tmp_path)
    before = left(tmp_path)
    await write_admin_token(registry.tokens, tmp_path)
    assert left(tmp_path) == before
    assert len(registry.tokens.all()) == 1


async def test_a_file_that_was_removed_is_not_written_again(
    registry: RegistryService, tmp_path: Path
) -> None:
    await write_admin_token(registry.tokens, tmp_path)
    (tmp_path / OPERATOR_TOKEN_FILE).unlink()
    await write_admin_token(registry.tokens, tmp_path)
    assert names_in(tmp_path) == []


async def test_a_registry_that_lost_its_tokens_writes_another(
    registry: RegistryService, tmp_path: Path
) -> None:
    (tmp_path / OPERATOR_TOKEN_FILE).write_text("gpuo_00000000_of-another-life\n")
    await write_admin_token(registry.tokens, tmp_path)
    assert recognised(registry, tmp_path) is not None


async def test_without_a_valid_admin_token_a_start_creates_one_beside_all_others(
    registry: RegistryService, tmp_path: Path
) -> None:
    await registry.tokens.create_operator(Role.OPERATE)
    await write_admin_token(registry.tokens, tmp_path)
    first = left(tmp_path)
    await registry.tokens.revoke(first.split("_")[1])
    await write_admin_token(registry.tokens, tmp_path)
    assert left(tmp_path) != first
    assert recognised(registry, tmp_path) is not None


async def test_a_file_with_a_valid_token_is_never_overwritten(
    registry: RegistryService, tmp_path: Path
) -> None:
    made = await registry.tokens.create_operator(Role.READ)
    assert isinstance(made, NewToken)
    (tmp_path / OPERATOR_TOKEN_FILE).write_text(made.token)
    with pytest.raises(StateDirectoryError, match="move that file away"):
        await write_admin_token(registry.tokens, tmp_path)
    assert left(tmp_path) == made.token


async def test_a_link_at_its_path_is_replaced_and_not_followed(
    registry: RegistryService, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    folder = tmp_path / "state"
    folder.mkdir()
    (folder / OPERATOR_TOKEN_FILE).symlink_to(victim)
    await write_admin_token(registry.tokens, folder)
    assert victim.read_text() == "precious"
    assert not (folder / OPERATOR_TOKEN_FILE).is_symlink()


async def test_a_directory_that_cannot_be_written_is_an_error_and_no_token_is_stored(
    registry: RegistryService, tmp_path: Path
) -> None:
    with pytest.raises(StateDirectoryError, match="--state-dir"):
        await write_admin_token(registry.tokens, tmp_path / "none")
    assert registry.tokens.all() == ()


async def test_a_store_that_cannot_store_it_is_an_error(tmp_path: Path) -> None:
    store = FailingStore()
    async with running(auth_on=True, store=store) as registry:
        store.full = True
        with pytest.raises(StateDirectoryError, match="could not be stored"):
            await write_admin_token(registry.tokens, tmp_path)
