"""`gpu-agent demo --once`: the main job, as anybody tries it first."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.programs import COMMAND, eventually

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(90)]


def children_of(marker: str) -> list[int]:
    """Pids of living processes whose command line mentions the marker."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            try:
                command = (folder / "cmdline").read_bytes()
            except OSError:
                continue
            if marker.encode() in command:
                found.append(int(folder.name))
    return found


def test_once_walks_the_main_job_in_under_30_seconds_and_leaves_nothing(tmp_path: Path) -> None:
    started = time.monotonic()
    done = subprocess.run(
        [*COMMAND, "demo", "--once"],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert time.monotonic() - started < 30
    steps = ["registry listens", "ready", "claimed", "model_not_available", "draining", "offline"]
    positions = [done.stdout.find(step) for step in steps]
    assert positions == sorted(positions), done.stdout
    assert -1 not in positions, done.stdout
    assert list(tmp_path.iterdir()) == []
    assert children_of(str(tmp_path)) == []


def test_the_live_demo_ends_at_ctrl_c_and_leaves_nothing(tmp_path: Path) -> None:
    demo = subprocess.Popen(
        [*COMMAND, "demo"],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    eventually(lambda: len(children_of(str(tmp_path))) >= 3, within_seconds=20, what="three agents")
    demo.send_signal(signal.SIGINT)
    said, _ = demo.communicate(timeout=15)
    assert demo.returncode == 0, said
    assert list(tmp_path.iterdir()) == []
    assert children_of(str(tmp_path)) == []
