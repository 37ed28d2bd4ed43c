import errno
import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest

from gpu_agent.runtime.files import AlreadyLockedError, FileLock, foreign_link, lock_holder, user_home
from tests.small_disk import Ballast, mounted


def test_a_second_holder_learns_the_first_one_s_process(tmp_path: Path) -> None:
    first = FileLock(tmp_path / "lock")
    with pytest.raises(AlreadyLockedError) as caught:
        FileLock(tmp_path / "lock")
    assert caught.value.holder == os.getpid()
    first.release()
    FileLock(tmp_path / "lock").release()


def test_the_lock_is_freed_when_its_process_is_killed(tmp_path: Path) -> None:
    program = "import sys; from pathlib import Path; from gpu_agent.runtime.files import FileLock\n"
    program += "lock = FileLock(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(AlreadyLockedError) as caught:
            FileLock(tmp_path / "lock")
        assert caught.value.holder == holder.pid
        holder.kill()
    FileLock(tmp_path / "lock").release()


def test_a_link_in_the_lock_s_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "lock").symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match="symbolic"):
        FileLock(tmp_path / "lock")
    assert not (tmp_path / "victim").exists()


def test_a_holder_that_cannot_be_read_is_unknown(tmp_path: Path) -> None:
    first = FileLock(tmp_path / "lock")
    (tmp_path / "lock").write_text("nonsense")
    with pytest.raises(AlreadyLockedError) as caught:
        FileLock(tmp_path / "lock")
    assert caught.value.holder is None
    first.release()


def test_a_full_disk_has_no_room_for_the_name_but_the_lock_holds(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", kib=64) as disk:
        (disk / "lock").touch()
        Ballast(disk).fill()
        held = FileLock(disk / "lock")
        with pytest.raises(AlreadyLockedError) as caught:
            FileLock(disk / "lock")
        assert caught.value.holder is None
        held.release()


@pytest.mark.skipif(sys.platform == "win32", reason="this platform locks otherwise")
def test_a_file_system_that_cannot_lock_is_not_taken_for_a_holder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", cannot)
    with pytest.raises(OSError, match="No locks available"):
        FileLock(tmp_path / "lock")


@pytest.mark.skipif(sys.platform != "linux", reason="this platform lists no locks")
def test_who_looks_from_outside_sees_the_holder_and_takes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with pytest.raises(FileNotFoundError):
        lock_holder(path)
    held = FileLock(path)
    assert lock_holder(path) == os.getpid()
    held.release()
    assert lock_holder(path) is None
    FileLock(path).release()


def test_a_list_of_locks_that_makes_no_sense_names_no_process(tmp_path: Path) -> None:
    path, listed = tmp_path / "lock", tmp_path / "locks"
    path.touch()
    listed.write_text(f"\n1: -> FLOCK\n2: FLOCK ADVISORY WRITE 1 fe:00:{path.stat().st_ino}1 0 EOF\n")
    assert lock_holder(path, listed=listed) is None
    listed.write_text(f"1: FLOCK  ADVISORY  WRITE 1 fe:00:{path.stat().st_ino} 0 EOF\n")
    assert lock_holder(path, listed=listed) == 0


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this platform has no named pipes")
def test_a_pipe_in_the_lock_s_place_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "lock")
    with pytest.raises(OSError, match="no regular file"):
        FileLock(tmp_path / "lock")


as_root = pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can give a link away")
STRANGER = 54321


def test_our_own_links_are_followed_as_we_meant_them(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    assert foreign_link(tmp_path / "link") is None
    assert foreign_link(tmp_path / "link" / "not yet" / "made") is None


@as_root
@pytest.mark.parametrize("below", [".", "state", "a/state"])
def test_a_strangers_link_is_found_wherever_it_stands_on_the_way(tmp_path: Path, below: str) -> None:
    (tmp_path / "there").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "there")
    os.lchown(link, STRANGER, STRANGER)
    assert foreign_link(link / below) == f"{link} is a link that user {STRANGER} has made; remove it"


@as_root
def test_a_strangers_folder_is_no_link(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    os.chown(folder, STRANGER, STRANGER)
    assert foreign_link(folder / "state") is None


def test_a_users_home_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_home() == tmp_path


def test_an_unknown_user_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(_number: int) -> object:
        raise KeyError

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    assert user_home() is None
