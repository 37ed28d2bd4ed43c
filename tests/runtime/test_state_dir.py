import os
import stat
import sys
from pathlib import Path

import pytest

from gpu_agent.runtime.state_dir import StateDirectoryError, default_state_dir, prepare


def test_it_is_made_with_its_parents_for_its_owner_alone(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    prepare(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_one_that_is_there_and_safe_is_taken_as_it_is(tmp_path: Path) -> None:
    prepare(tmp_path / "state")
    (tmp_path / "state" / "kept").touch()
    prepare(tmp_path / "state")
    assert (tmp_path / "state" / "kept").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="modes are POSIX's")
@pytest.mark.parametrize("mode", [0o750, 0o701, 0o770, 0o707, 0o777])
def test_one_that_others_may_enter_is_refused_with_the_command_that_mends_it(
    tmp_path: Path, mode: int
) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(StateDirectoryError, match=rf"mode 0{mode:o}.*chmod 700 {folder}"):
        prepare(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == mode


@pytest.mark.skipif(
    sys.platform == "win32" or os.geteuid() != 0, reason="only root can give a directory away"
)
def test_another_users_directory_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir(mode=0o700)
    os.chown(folder, 12345, 12345)
    with pytest.raises(StateDirectoryError, match="belongs to user 12345"):
        prepare(folder)


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() != 0, reason="only root can give a link away")
def test_one_behind_a_strangers_link_is_refused_and_nothing_is_put_there(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "there")
    os.lchown(tmp_path / "link", 12345, 12345)
    with pytest.raises(StateDirectoryError, match="is a link that user 12345 has made"):
        prepare(tmp_path / "link" / "state")
    assert list((tmp_path / "there").iterdir()) == []


def test_a_file_in_its_place_is_told_with_the_next_step(tmp_path: Path) -> None:
    (tmp_path / "state").touch()
    with pytest.raises(StateDirectoryError, match="--state-dir"):
        prepare(tmp_path / "state")


def test_by_default_it_is_not_the_agents() -> None:
    assert default_state_dir().name == "gpu-registry"
