import os
import pwd
import stat
import sys
from pathlib import Path

import pytest

from gpu_agent.runtime.state_dir import (
    ENDPOINT_FILE,
    Endpoint,
    StateDirectoryError,
    default_state_dir,
    prepare_state_dir,
    read_endpoint_file,
    remove_endpoint_file,
    user_state_dir,
    write_endpoint_file,
)


def test_it_is_made_with_its_parents_for_its_owner_alone(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    prepare_state_dir(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_one_that_is_there_and_safe_is_taken_as_it_is(tmp_path: Path) -> None:
    prepare_state_dir(tmp_path / "state")
    (tmp_path / "state" / "file").touch()
    prepare_state_dir(tmp_path / "state")
    assert (tmp_path / "state" / "file").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="modes are POSIX's")
@pytest.mark.parametrize("mode", [0o750, 0o701, 0o770, 0o707, 0o777])
def test_one_that_others_may_enter_is_refused_with_the_command_that_fixes_it(
    tmp_path: Path, mode: int
) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(StateDirectoryError, match=rf"mode 0{mode:o}.*chmod 700 {folder}"):
        prepare_state_dir(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == mode


@pytest.mark.skipif(
    sys.platform == "win32" or os.geteuid() != 0, reason="only root can give a directory away"
)
def test_another_users_directory_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir(mode=0o700)
    os.chown(folder, 12345, 12345)
    with pytest.raises(StateDirectoryError, match="belongs to user 12345"):
        prepare_state_dir(folder)


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() != 0, reason="only root can give a link away")
def test_one_behind_a_strangers_link_is_refused_and_nothing_is_put_there(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "there")
    os.lchown(tmp_path / "link", 12345, 12345)
    with pytest.raises(StateDirectoryError, match="is a link that user 12345 has made"):
        prepare_state_dir(tmp_path / "link" / "state")
    assert list((tmp_path / "there").iterdir()) == []


def test_a_file_in_its_place_is_refused_with_the_next_step(tmp_path: Path) -> None:
    (tmp_path / "state").touch()
    with pytest.raises(StateDirectoryError, match="--state-dir"):
        prepare_state_dir(tmp_path / "state")


def test_by_default_it_is_not_the_agents() -> None:
    assert default_state_dir().name == "gpu-registry"


PIN = "sha256//" + "A" * 43 + "="


def test_what_is_left_is_found_until_it_is_taken_back(tmp_path: Path) -> None:
    for left in (Endpoint("http://127.0.0.1:8081"), Endpoint("https://[::1]:8081", PIN)):
        write_endpoint_file(tmp_path, left)
        assert read_endpoint_file(tmp_path) == left
    assert [path.name for path in tmp_path.iterdir()] == [ENDPOINT_FILE]
    remove_endpoint_file(tmp_path)
    assert read_endpoint_file(tmp_path) is None
    remove_endpoint_file(tmp_path)


def test_only_its_owner_may_read_it(tmp_path: Path) -> None:
    write_endpoint_file(tmp_path, Endpoint("http://127.0.0.1:8081"))
    assert stat.S_IMODE((tmp_path / ENDPOINT_FILE).stat().st_mode) == 0o600


def test_a_link_in_its_place_is_replaced_and_not_followed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("mine")
    (tmp_path / ENDPOINT_FILE).symlink_to(elsewhere)
    write_endpoint_file(tmp_path, Endpoint("http://127.0.0.1:8081"))
    assert elsewhere.read_text() == "mine"


def test_a_directory_that_takes_nothing_says_so_and_keeps_nothing(tmp_path: Path) -> None:
    (tmp_path / ENDPOINT_FILE).mkdir()
    with pytest.raises(OSError, match=ENDPOINT_FILE):
        write_endpoint_file(tmp_path, Endpoint("http://127.0.0.1:8081"))
    assert [path.name for path in tmp_path.iterdir()] == [ENDPOINT_FILE]
    with pytest.raises(FileNotFoundError):
        write_endpoint_file(tmp_path / "absent", Endpoint("http://127.0.0.1:8081"))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"api": "x"}',
        b'{"api": "x", "pin": "y"}',
        b"[" * 4000,
        b"\xff",
        b"{}" * 9999,
    ],
)
def test_what_is_none_is_as_good_as_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / ENDPOINT_FILE).write_bytes(content)
    assert read_endpoint_file(tmp_path) is None


@pytest.fixture
def _no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(_number: int) -> object:
        raise KeyError

    for name in ("HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)


def test_state_is_stored_where_the_platform_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert user_state_dir("x") == tmp_path / "x"


@pytest.mark.usefixtures("_no_home")
def test_who_has_no_home_keeps_no_state_in_whatever_folder_he_is() -> None:
    assert user_state_dir("x") == Path("/nonexistent/.local/state/x")
