"""`gpu-agent demo --once`: the main job, as anybody tries it first."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gpu_agent.cli.demo import ending_with_this_process
from tests.programs import COMMAND, eventually
from tests.waiting import patience

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(90)]


def processes_in(folder: Path, *, called: str = "") -> list[int]:
    """Pids of living processes that were given this folder as their TMPDIR, whatever started them."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and int(process.name) != os.getpid():
            try:
                environment = (process / "environ").read_bytes().split(b"\0")
                command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if f"TMPDIR={folder}".encode() in environment and called in command:
                found.append(int(process.name))
    return found


def test_once_walks_the_main_job_in_under_30_seconds_and_leaves_nothing(tmp_path: Path) -> None:
    started = time.monotonic()
    done = subprocess.run(
        [*COMMAND, "demo", "--once"],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=patience(60),
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert time.monotonic() - started < 30
    steps = ["registry listens", "ready", "claimed", "model_not_available", "draining", "released", "offline"]
    positions = [done.stdout.find(step) for step in steps]
    assert positions == sorted(positions), done.stdout
    assert -1 not in positions, done.stdout
    assert list(tmp_path.iterdir()) == []
    assert processes_in(tmp_path) == []


@contextmanager
def started_demo(folder: Path) -> "Iterator[subprocess.Popen[str]]":
    """A live demo whose three agents run; ended for certain after the test."""
    with subprocess.Popen(
        [*COMMAND, "demo"],
        env={**os.environ, "TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as demo:
        try:
            eventually(
                lambda: len(processes_in(folder, called="python -m gpu_agent.cli run")) >= 3,
                within_seconds=20,
                what="three agents",
            )
            yield demo
        finally:
            demo.kill()


@pytest.mark.parametrize(
    "numbers",
    [
        [signal.SIGINT],
        [signal.SIGTERM],
        [signal.SIGHUP],
        [signal.SIGQUIT],
        [signal.SIGINT, signal.SIGINT, signal.SIGTERM],
    ],
    ids=lambda numbers: "+".join(number.name for number in numbers),
)
def test_the_live_demo_ends_at_each_ending_signal_and_leaves_nothing(
    tmp_path: Path, numbers: list[signal.Signals]
) -> None:
    with started_demo(tmp_path) as demo:
        for number in numbers:
            demo.send_signal(number)
            time.sleep(0.05)  # apart, as a person's keys are; equal signals would be one
        said, _ = demo.communicate(timeout=patience(20))
    assert demo.returncode == 0, said
    assert list(tmp_path.iterdir()) == []
    assert processes_in(tmp_path) == []


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="only setpriv ties children to the demo's life")
def test_a_process_whose_demo_died_before_it_was_tied_to_it_does_not_start(tmp_path: Path) -> None:
    tie = ending_with_this_process()
    ours, orphan = tmp_path / "ours", tmp_path / "orphan"
    subprocess.run([*tie, "touch", str(ours)], check=True)
    subprocess.run(["sh", "-c", '"$@"; true', "sh", *tie, "touch", str(orphan)], check=True)
    assert ours.exists()
    assert not orphan.exists()


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="only setpriv ties children to the demo's life")
def test_no_process_outlives_a_demo_that_was_killed(tmp_path: Path) -> None:
    with started_demo(tmp_path) as demo:
        demo.kill()
        demo.communicate(timeout=patience(20))
    eventually(lambda: not processes_in(tmp_path), within_seconds=10, what="no process of the demo's")
