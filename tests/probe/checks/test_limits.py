"""A check whose user may start its process, and no thread that reads what it prints."""

import os
import subprocess
import sys

import pytest

from tests.waiting import patience

PROGRAM = """\
import os, resource, threading, time
from gpu_agent.probe.checks.process import CheckProcesses
processes = CheckProcesses(os.environ)
processes.run(["true"], deadline_seconds=10, stop=threading.Event())  # loads what the user may not read
while len(os.listdir("/proc/self/task")) > 1:  # a thread that has been joined may still count
    time.sleep(0.005)
os.setuid(50_000 + os.getpid() % 10_000)  # whose processes are counted: one of its own
resource.setrlimit(resource.RLIMIT_NPROC, (2, 2))
ended = processes.run(["sleep", "600"], deadline_seconds=600, stop=threading.Event())
print(ended.why)
print(processes._left_behind.wait(10))
"""


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="only root may become another user")
def test_a_check_whose_output_nobody_can_read_is_asked_to_end_and_says_why() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        check=False,
        timeout=patience(60),
    )
    assert ended.returncode == 0, ended.stderr
    why, status = ended.stdout.splitlines()
    assert "its output could not be read (can't start new thread): see `ulimit -u`" in why
    assert status == "-15"
