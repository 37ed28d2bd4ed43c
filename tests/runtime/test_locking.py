import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gpu_agent.runtime.locking import AlreadyLockedError, Lock, holder_of
from tests.small_disk import Ballast, mounted


def test_a_second_holder_is_told_the_first_one_s_process(tmp_path: Path) -> None:
    first = Lock(tmp_path / "lock")
    with pytest.raises(AlreadyLockedError) as caught:
        Lock(tmp_path / "lock")
    assert caught.value.holder == os.getpid()
    first.release()
    Lock(tmp_path / "lock").release()


def test_the_lock_is_freed_when_its_process_is_killed(tmp_path: Path) -> None:
    program = "import sys; from pathlib import Path; from gpu_agent.runtime.locking import Lock\n"
    program += "lock = Lock(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(AlreadyLockedError) as caught:
            Lock(tmp_path / "lock")
        assert caught.value.holder == holder.pid
        holder.kill()
    Lock(tmp_path / "lock").release()


def test_a_link_in_the_lock_s_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "lock").symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match="symbolic"):
        Lock(tmp_path / "lock")
    assert not (tmp_path / "victim").exists()


def test_a_holder_that_cannot_be_read_is_unknown(tmp_path: Path) -> None:
    first = Lock(tmp_path / "lock")
    (tmp_path / "lock").write_text("nonsense")
    with pytest.raises(AlreadyLockedError) as caught:
        Lock(tmp_path / "lock")
    assert caught.value.holder is None
    first.release()


def test_a_full_disk_has_no_room_for_the_name_but_the_lock_holds(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", kib=64) as disk:
        (disk / "lock").touch()
        Ballast(disk).fill()
        held = Lock(disk / "lock")
        with pytest.raises(AlreadyLockedError) as caught:
            Lock(disk / "lock")
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
        Lock(tmp_path / "lock")


@pytest.mark.skipif(sys.platform != "linux", reason="this platform lists no locks")
def test_who_looks_from_outside_sees_the_holder_and_takes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with pytest.raises(FileNotFoundError):
        holder_of(path)
    held = Lock(path)
    assert holder_of(path) == os.getpid()
    held.release()
    assert holder_of(path) is None
    Lock(path).release()


def test_a_list_of_locks_that_makes_no_sense_names_nobody(tmp_path: Path) -> None:
    path, listed = tmp_path / "lock", tmp_path / "locks"
    path.touch()
    listed.write_text(f"\n1: -> FLOCK\n2: FLOCK ADVISORY WRITE 1 fe:00:{path.stat().st_ino}1 0 EOF\n")
    assert holder_of(path, listed=listed) is None
    listed.write_text(f"1: FLOCK  ADVISORY  WRITE 1 fe:00:{path.stat().st_ino} 0 EOF\n")
    assert holder_of(path, listed=listed) == 0


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this platform has no named pipes")
def test_a_pipe_in_the_lock_s_place_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "lock")
    with pytest.raises(OSError, match="no regular file"):
        Lock(tmp_path / "lock")
