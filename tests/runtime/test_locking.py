import os
import subprocess
import sys
from pathlib import Path

import pytest

from gpu_agent.runtime.locking import AlreadyLockedError, Lock


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
