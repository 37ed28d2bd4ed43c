"""What a killed run of these tests leaves behind, and what two runs do to each other: nothing."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.programs import eventually
from tests.system.cgroups import end_leftovers
from tests.system.machine import Machine
from tests.system.roots import SUITES
from tests.waiting import patience

pytestmark = pytest.mark.timeout(300)

ONE = pytest.mark.parametrize("suite", SUITES[-1:], indirect=True, scope="module")
"""It does not matter which release."""
CHECKOUT = Path(__file__).parent.parent.parent
SLEEPER = ("systemd-run", "--quiet", "--unit=sleeper", "sleep", "infinity")
BOOTS = """
import sys, threading
from pathlib import Path
from tests.system.machine import Machine
from tests.system.roots import SUITES
with Machine(Path(sys.argv[1]), Path(sys.argv[2])) as machine:
    print(machine.leader, flush=True)
    threading.Event().wait()
"""
MAKES = """
import sys
from pathlib import Path
from tests.system import roots
roots.CACHE = Path(sys.argv[1])
print(roots.debian("trixie"))
"""


@ONE
def test_two_machines_at_once_keep_their_services_apart(root: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    with Machine(root, first) as one, Machine(root, second) as other:
        one.run(*SLEEPER)
        other.run(*SLEEPER)
        one.run("systemctl", "stop", "sleeper")
        assert other.show("sleeper", "ActiveState") == "active"


@ONE
def test_what_a_killed_run_booted_is_ended_by_the_next_one(root: Path, tmp_path: Path) -> None:
    killed = subprocess.Popen(
        [sys.executable, "-c", BOOTS, str(root), str(tmp_path)],
        cwd=CHECKOUT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert killed.stdout is not None
    with killed.stdout:
        leader = psutil.Process(int(killed.stdout.readline()))
    nspawn = leader.parent()
    assert nspawn is not None
    end_leftovers()
    assert leader.is_running(), "one that is in use is no leftover"
    for process in (nspawn, killed):
        process.send_signal(signal.SIGKILL)
    killed.wait(patience(10))
    end_leftovers()
    eventually(lambda: _ended(leader), within_seconds=10, what="the end of a machine left behind")


def test_a_root_that_a_killed_run_began_is_made_again(obstacle: str | None, tmp_path: Path) -> None:
    if obstacle is not None:
        pytest.skip(obstacle)
    cache, stand_in = tmp_path / "cache", tmp_path / "bin" / "debootstrap"
    stand_in.parent.mkdir()
    stand_in.touch(mode=0o755)
    environment = {**os.environ, "PATH": f"{stand_in.parent}:{os.environ['PATH']}"}
    words = [sys.executable, "-c", MAKES, str(cache)]

    stand_in.write_text('#!/bin/sh\nmkdir "$4" && echo half >"$4/made" && exec sleep infinity\n')
    killed = subprocess.Popen(words, cwd=CHECKOUT, env=environment)
    eventually(lambda: list(cache.glob("*/made")), within_seconds=20, what="a root that is begun")
    makers = psutil.Process(killed.pid).children(recursive=True)
    killed.kill()
    killed.wait(patience(10))
    eventually(lambda: all(map(_ended, makers)), within_seconds=10, what="the end of what it had started")

    stand_in.write_text('#!/bin/sh\nmkdir "$4" && echo whole >"$4/made"\n')
    made = subprocess.run(words, cwd=CHECKOUT, env=environment, check=True, capture_output=True, text=True)
    root = Path(made.stdout.strip())
    assert (root / "made").read_text() == "whole\n"
    assert [path for path in cache.iterdir() if path.is_dir()] == [root]


def _ended(process: psutil.Process) -> bool:
    """True also of one that PID 1 has not heard of yet."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
