"""The load of very many nodes, in small: the program that measures ten thousand runs with three hundred."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e

PROGRAM = Path(__file__).parent.parent.parent / "benchmarks" / "fleet_load.py"


def test_three_hundred_nodes_connect_stay_are_lost_and_return() -> None:
    measured = subprocess.run(
        [sys.executable, str(PROGRAM), "--nodes", "300", "--minutes", "0.1", "--quick", "--check"],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert measured.returncode == 0, measured.stdout + measured.stderr
    assert "all targets met" in measured.stdout
