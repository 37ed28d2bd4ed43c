"""A day of polls, in small: the program that measures twenty thousand runs with some hundreds."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e

PROGRAM = Path(__file__).parent.parent.parent / "benchmarks" / "probe_soak.py"


def test_hundreds_of_polls_and_deaths_of_the_child_leave_nothing_behind() -> None:
    measured = subprocess.run(
        [sys.executable, str(PROGRAM), "--polls", "1200", "--check"],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert measured.returncode == 0, measured.stdout + measured.stderr
    assert "flat: nothing grew" in measured.stdout
    assert ", 3 deaths of the child, " in measured.stdout
