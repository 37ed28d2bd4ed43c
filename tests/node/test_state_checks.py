import os
from pathlib import Path

import pytest

from gpu_agent.node.identity import FILE, IdentityFile, lock_state_dir
from gpu_agent.node.settings import AgentSettings
from gpu_agent.node.state_checks import available_tokens, check_state
from gpu_agent.runtime.check_results import CheckResult, CheckStatus
from tests.programs import free_port

TOKEN = "gpuj_3f9a01bc_AbCdEfGhIjKlMnOpQrStUvWxYz012345"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "state"
    folder.mkdir(mode=0o700)
    return folder


def settings(folder: Path, **more: object) -> AgentSettings:
    where = f"ws://127.0.0.1:{free_port()}/"
    return AgentSettings.model_validate({"registry_url": where, "state_dir": folder, **more})


def found(folder: Path, **more: object) -> dict[str, CheckResult]:
    findings = list(check_state(settings(folder, **more)))
    assert TOKEN not in repr(findings)
    return {finding.check: finding for finding in findings}


def test_an_unused_directory_is_ok_and_unchanged(folder: Path) -> None:
    assert found(folder)["state directory"] == CheckResult(
        "state directory", CheckStatus.OK, f"{folder}, mode 0700"
    )
    assert list(folder.iterdir()) == []


def test_an_agent_that_runs_on_it_is_named_and_not_disturbed(folder: Path) -> None:
    with lock_state_dir(folder):
        assert found(folder)["state directory"].detail.endswith(
            f"an agent runs on it (process {os.getpid()})"
        )
    assert found(folder)["state directory"].detail.endswith("no agent runs on it")


def test_a_directory_that_is_not_there_is_the_agents_to_make(folder: Path) -> None:
    finding = found(folder / "below")["state directory"]
    assert (finding.verdict, (folder / "below").exists()) == (CheckStatus.OK, False)


def test_a_file_in_its_place_fails(folder: Path) -> None:
    (folder / "file").touch()
    assert found(folder / "file")["state directory"].verdict is CheckStatus.FAIL


def test_a_directory_that_others_may_write_is_a_warning_with_its_fix(folder: Path) -> None:
    folder.chmod(0o777)
    finding = found(folder)["state directory"]
    assert finding.verdict is CheckStatus.WARN
    assert finding.fix == f"run `chmod 700 {folder}`, as its owner"


def test_a_directory_that_we_may_not_write_fails(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)  # root may do everything
    assert found(folder)["state directory"].verdict is CheckStatus.FAIL
    assert found(folder / "below")["state directory"].verdict is CheckStatus.FAIL


def test_an_identity_is_reported_without_its_token(folder: Path) -> None:
    IdentityFile(folder).save("node-A", TOKEN)
    assert found(folder)["identity"].detail == "node-A, with a token of its own"
    assert available_tokens(settings(folder)).node == TOKEN
    assert TOKEN not in repr(available_tokens(settings(folder)))


def test_an_identity_that_cannot_be_understood_stays_where_it_is(folder: Path) -> None:
    (folder / FILE).write_text("{")
    assert found(folder)["identity"].verdict is CheckStatus.WARN
    assert (folder / FILE).read_text() == "{"
    assert available_tokens(settings(folder)).node is None


def test_an_identity_behind_a_link_is_not_read(folder: Path) -> None:
    (folder / FILE).symlink_to(folder / "elsewhere")
    assert found(folder)["identity"].verdict is CheckStatus.FAIL


def test_a_join_tokens_file_is_checked(folder: Path) -> None:
    file = folder / "join.token"
    assert found(folder)["join token"].verdict is CheckStatus.SKIPPED
    assert found(folder, join_token_file=file)["join token"].verdict is CheckStatus.FAIL
    file.touch(mode=0o600)
    assert "it holds no token" in found(folder, join_token_file=file)["join token"].detail
    file.write_text(TOKEN)
    assert found(folder, join_token_file=file)["join token"].verdict is CheckStatus.OK
    assert available_tokens(settings(folder, join_token_file=file)).join == TOKEN
    file.chmod(0o644)
    exposed = found(folder, join_token_file=file)["join token"]
    assert (exposed.verdict, f"chmod 600 {file}" in (exposed.fix or "")) == (CheckStatus.WARN, True)


def test_a_join_token_of_the_settings_is_checked_and_not_shown(folder: Path) -> None:
    assert found(folder, join_token=TOKEN)["join token"].detail == "in the settings"
    assert available_tokens(settings(folder, join_token=TOKEN)).join == TOKEN
    assert found(folder, join_token="a\nb")["join token"].verdict is CheckStatus.FAIL


@pytest.mark.parametrize("text", ["hello world", "debian", "gpuo_3f9a01bc_AbCdEf"])
def test_a_file_that_holds_no_join_token_is_called_so(folder: Path, text: str) -> None:
    file = folder / "join.token"
    file.touch(mode=0o600)
    file.write_text(f"{text}\n")
    finding = found(folder, join_token_file=file)["join token"]
    assert finding.verdict in (CheckStatus.FAIL, CheckStatus.WARN)
    assert "holds no" in finding.detail
    assert text not in finding.detail
