"""The first start of a registry that runs, with a true state directory."""

import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gpu_agent.registry.credentials import Credential, CredentialKind, Role
from gpu_agent.runtime.state_dir import OPERATOR_TOKEN_FILE, StateDirectoryError
from gpu_agent.server.first_token import NAME, leave_admin_token
from gpu_agent.server.service import RegistryService
from gpu_agent.server.tokens import NewToken
from tests.server.disks import FailingStore
from tests.server.harness import running


@pytest.fixture
async def service() -> AsyncIterator[RegistryService]:
    async with running(auth_on=True) as service:
        yield service


def left(folder: Path) -> str:
    return (folder / OPERATOR_TOKEN_FILE).read_text(encoding="ascii").strip()


def names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def recognised(service: RegistryService, folder: Path) -> Credential | None:
    return service.tokens.authenticate(left(folder))


async def test_the_first_start_leaves_an_admins_token_to_its_owner_alone(
    service: RegistryService, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await leave_admin_token(service.tokens, tmp_path)
    credential = recognised(service, tmp_path)
    assert credential is not None
    assert (credential.kind, credential.role) == (CredentialKind.OPERATOR, Role.ADMIN)
    assert service.tokens.name_of(credential) == NAME
    assert stat.S_IMODE((tmp_path / OPERATOR_TOKEN_FILE).stat().st_mode) == 0o600
    assert names_in(tmp_path) == [OPERATOR_TOKEN_FILE]
    written = [record for record in caplog.records if record.getMessage() == "operator_token_written"]
    assert [record.__dict__["fields"] for record in written] == [
        {"file": str(tmp_path / OPERATOR_TOKEN_FILE)}
    ]


async def test_while_it_lives_a_start_changes_nothing(service: RegistryService, tmp_path: Path) -> None:
    await leave_admin_token(service.tokens, tmp_path)
    before = left(tmp_path)
    await leave_admin_token(service.tokens, tmp_path)
    assert left(tmp_path) == before
    assert len(service.tokens.listed()) == 1


async def test_a_file_that_was_taken_away_is_not_made_again(service: RegistryService, tmp_path: Path) -> None:
    await leave_admin_token(service.tokens, tmp_path)
    (tmp_path / OPERATOR_TOKEN_FILE).unlink()
    await leave_admin_token(service.tokens, tmp_path)
    assert names_in(tmp_path) == []


async def test_a_registry_that_has_forgotten_its_token_leaves_another(
    service: RegistryService, tmp_path: Path
) -> None:
    (tmp_path / OPERATOR_TOKEN_FILE).write_text("gpuo_00000000_of-another-life\n")
    await leave_admin_token(service.tokens, tmp_path)
    assert recognised(service, tmp_path) is not None


async def test_when_no_admin_is_left_a_start_makes_one_whoever_else_there_is(
    service: RegistryService, tmp_path: Path
) -> None:
    await service.tokens.create_operator(Role.OPERATE)
    await leave_admin_token(service.tokens, tmp_path)
    first = left(tmp_path)
    await service.tokens.revoke(first.split("_")[1])
    await leave_admin_token(service.tokens, tmp_path)
    assert left(tmp_path) != first
    assert recognised(service, tmp_path) is not None


async def test_a_file_whose_token_lives_is_never_overwritten(
    service: RegistryService, tmp_path: Path
) -> None:
    made = await service.tokens.create_operator(Role.READ)
    assert isinstance(made, NewToken)
    (tmp_path / OPERATOR_TOKEN_FILE).write_text(made.token)
    with pytest.raises(StateDirectoryError, match="move that file away"):
        await leave_admin_token(service.tokens, tmp_path)
    assert left(tmp_path) == made.token


async def test_a_link_in_its_place_is_replaced_and_not_followed(
    service: RegistryService, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    folder = tmp_path / "state"
    folder.mkdir()
    (folder / OPERATOR_TOKEN_FILE).symlink_to(victim)
    await leave_admin_token(service.tokens, folder)
    assert victim.read_text() == "precious"
    assert not (folder / OPERATOR_TOKEN_FILE).is_symlink()


async def test_a_directory_that_cannot_be_written_is_told_and_no_token_is_kept(
    service: RegistryService, tmp_path: Path
) -> None:
    with pytest.raises(StateDirectoryError, match="--state-dir"):
        await leave_admin_token(service.tokens, tmp_path / "none")
    assert service.tokens.listed() == ()


async def test_a_store_that_cannot_keep_it_is_told(tmp_path: Path) -> None:
    store = FailingStore()
    async with running(auth_on=True, store=store) as service:
        store.full = True
        with pytest.raises(StateDirectoryError, match="could not be kept"):
            await leave_admin_token(service.tokens, tmp_path)
