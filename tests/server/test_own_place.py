import os
import stat
import sys
from pathlib import Path

import pytest

from gpu_agent.server.own_place import claim
from gpu_agent.server.stores import lock_of, open_store
from gpu_agent.store.base import UnusableError

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="owners and modes are POSIX's")
as_root = pytest.mark.skipif(
    sys.platform == "win32" or os.geteuid() != 0, reason="only root can give a file away"
)
SOMEBODY = 12345


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_directory_that_others_may_only_read_is_taken(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    claim(tmp_path / "r.db")


@pytest.mark.parametrize("open_to", [0o770, 0o707, 0o1777, 0o722])
def test_a_directory_that_others_may_write_is_refused_with_another_to_name(
    tmp_path: Path, open_to: int
) -> None:
    tmp_path.chmod(open_to)
    with pytest.raises(UnusableError, match=rf"{tmp_path} can be written.*chmod go-w.*/registry/r\.db"):
        claim(tmp_path / "r.db")


def test_neither_may_the_directory_be_in_which_a_linked_file_lies(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o777)
    (tmp_path / "r.db").symlink_to(tmp_path / "shared" / "r.db")
    with pytest.raises(UnusableError, match=r"shared can be written"):
        claim(tmp_path / "r.db")


@pytest.mark.parametrize("open_to", [0o620, 0o602, 0o666])
def test_a_file_that_others_may_write_is_refused_untouched(tmp_path: Path, open_to: int) -> None:
    path = tmp_path / "r.db"
    path.touch()
    path.chmod(open_to)
    with pytest.raises(UnusableError, match=rf"can be written.*mode 0{open_to:o}.*chmod 600"):
        claim(path)
    assert mode(path) == open_to


def test_a_file_that_others_may_read_is_closed_to_them(tmp_path: Path) -> None:
    path = tmp_path / "r.db"
    path.touch(mode=0o644)
    claim(path)
    assert mode(path) == 0o600


@as_root
def test_another_users_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.db"
    path.touch(mode=0o600)
    os.chown(path, SOMEBODY, SOMEBODY)
    with pytest.raises(UnusableError, match=f"belongs to user {SOMEBODY}"):
        claim(path)


@as_root
def test_another_users_directory_is_refused(tmp_path: Path) -> None:
    os.chown(tmp_path, SOMEBODY, SOMEBODY)
    with pytest.raises(UnusableError, match=f"belongs to user {SOMEBODY}"):
        claim(tmp_path / "r.db")


def test_no_registry_starts_on_what_is_refused_and_its_place_is_let_go(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(UnusableError):
        open_store(f"sqlite://{tmp_path / 'r.db'}", tmp_path / "state")
    assert not (tmp_path / "r.db").exists()
    lock_of(tmp_path / "r.db").release()
    open_store(f"sqlite://{tmp_path / 'new' / 'r.db'}", tmp_path / "state").close()
