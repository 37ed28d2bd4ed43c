import os
from pathlib import Path

import pytest

from gpu_agent.cli.client import discovery as api_address
from gpu_agent.cli.client.discovery import STATE_DIR_VARIABLE, VARIABLE, find_token
from gpu_agent.cli.command import ExitCode, Failure
from gpu_agent.runtime.state_dir import OPERATOR_TOKEN_FILE

HERE = "http://127.0.0.1:8081"
ELSEWHERE = "http://10.0.0.1:8081"


@pytest.fixture(autouse=True)
def state_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state directory of a registry on this machine; nothing of the true machine is read."""
    folder = tmp_path / "state"
    folder.mkdir()
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv(STATE_DIR_VARIABLE, str(folder))
    return folder


def written(folder: Path, text: str, name: str = "token") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def found(
    url: str, *, token_file: Path | None = None, insecure_plaintext: bool = False
) -> tuple[str, str] | None:
    token = find_token(url, token_file=token_file, insecure_plaintext=insecure_plaintext)
    return None if token is None else (token.text, token.source)


def test_where_there_is_none_none_is_shown() -> None:
    assert found(HERE) is None


def test_a_named_file_goes_before_the_environment_and_that_before_what_a_registry_left(
    tmp_path: Path, state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = written(state_dir, "gpuo_left\n", OPERATOR_TOKEN_FILE)
    assert found(HERE) == ("gpuo_left", str(left))
    monkeypatch.setenv(VARIABLE, "gpuo_env")
    assert found(HERE) == ("gpuo_env", f"${VARIABLE}")
    named = written(tmp_path, "gpuo_named\n")
    assert found(HERE, token_file=named) == ("gpuo_named", str(named))


@pytest.mark.parametrize("url", [HERE, "http://localhost:1", "http://[::1]:1", "https://127.0.0.1:1"])
def test_this_machines_own_token_goes_to_this_machine(url: str, state_dir: Path) -> None:
    written(state_dir, "gpuo_left", OPERATOR_TOKEN_FILE)
    assert find_token(url) is not None


@pytest.mark.parametrize("url", [ELSEWHERE, "https://registry.example", "http://127.0.0.1.example"])
def test_this_machines_own_token_goes_to_no_other(url: str, state_dir: Path) -> None:
    written(state_dir, "gpuo_left", OPERATOR_TOKEN_FILE)
    assert find_token(url, insecure_plaintext=True) is None


def test_without_a_stated_directory_the_platforms_and_the_units_are_looked_into(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(STATE_DIR_VARIABLE)
    monkeypatch.setattr(api_address, "default_state_dir", lambda: tmp_path / "none")
    monkeypatch.setattr(api_address, "UNIT_FOLDER", tmp_path)
    left = written(tmp_path, "gpuo_left", OPERATOR_TOKEN_FILE)
    assert found(HERE) == ("gpuo_left", str(left))


def test_a_token_never_goes_to_another_machine_in_the_clear_unless_reported_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "gpuo_env")
    named = written(tmp_path, "gpuo_named")
    for token_file in (named, None):
        with pytest.raises(Failure, match=r"not encrypted.*--insecure-plaintext") as refused:
            find_token(ELSEWHERE, token_file=token_file)
        assert refused.value.code is ExitCode.CONFIGURATION
        assert "gpuo_" not in str(refused.value)
    assert find_token(ELSEWHERE, insecure_plaintext=True) is not None
    assert find_token("https://10.0.0.1:8081") is not None


@pytest.mark.parametrize("text", ["", "\n", "two words", "gpuo_ü", "a\nb", "\x00"])
def test_what_is_no_token_is_reported_without_its_text(text: str, tmp_path: Path) -> None:
    named = written(tmp_path, text)
    with pytest.raises(Failure, match=f"{named} holds no operator token"):
        find_token(HERE, token_file=named)


def test_a_named_file_that_cannot_be_read_is_reported(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="cannot be read") as refused:
        find_token(HERE, token_file=tmp_path / "none")
    assert refused.value.code is ExitCode.CONFIGURATION


def test_a_token_in_place_of_its_file_is_not_repeated() -> None:
    with pytest.raises(Failure, match="revoked") as refused:
        find_token(HERE, token_file=Path("gpuo_0123abcd_secret"))
    assert "secret" not in str(refused.value)


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
def test_a_named_file_that_everybody_may_read_is_reported_of_and_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named, said = written(tmp_path, "gpuo_named"), []
    for mode in (0o600, 0o440, 0o604):
        named.chmod(mode)
        assert found(HERE, token_file=named) == ("gpuo_named", str(named))
        said.append(capsys.readouterr().err)
    assert said[:2] == ["", ""]
    assert f"(mode 0604): run `chmod 600 {named}`" in said[2]
    assert "gpuo_named" not in said[2]


def test_what_a_registry_left_lets_its_own_token_go_where_it_says_and_no_other(
    tmp_path: Path, state_dir: Path
) -> None:
    """It may listen on an address of this machine that is not loopback's."""
    written(state_dir, "gpuo_left", OPERATOR_TOKEN_FILE)
    left = find_token(ELSEWHERE, state_dir=state_dir)
    assert left is not None
    assert left.written_by is not None
    with pytest.raises(Failure, match="not encrypted"):
        find_token(ELSEWHERE, token_file=written(tmp_path, "gpuo_named"), state_dir=state_dir)
