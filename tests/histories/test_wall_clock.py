"""The wall clock that the nemesis sets is that of the process, and its monotonic clock goes on."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.histories.registries import WallClock

PROGRAM = """
import datetime, sys, time
for _ in sys.stdin:
    print(time.time(), datetime.datetime.now().timestamp(), time.monotonic(), flush=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="LD_PRELOAD")
def test_a_running_process_sees_the_clock_that_was_set(tmp_path: Path) -> None:
    clock = WallClock(tmp_path)
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **clock.environment},
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for ahead in (0.0, 1e6, -1e6):
            clock.set_ahead(ahead)
            process.stdin.write("\n")
            process.stdin.flush()
            wall, date, monotonic = map(float, process.stdout.readline().split())
            assert wall == pytest.approx(time.time() + ahead, abs=60)
            assert date == pytest.approx(wall, abs=60)
            assert monotonic == pytest.approx(time.monotonic(), abs=60)
        process.stdin.close()
