import subprocess
import sys
from pathlib import Path

import pytest

from gpu_agent.probe.nvml.head_start import dismiss, leave_behind, start_child
from tests.nvml_fake.control import FakeNvml


def test_a_child_that_is_not_needed_is_let_go_at_once(tmp_path: Path) -> None:
    child = start_child(env=FakeNvml(tmp_path).environment())
    dismiss(child)
    assert child.process is not None
    assert child.process.poll() is not None


def test_a_child_that_cannot_be_started_says_why(tmp_path: Path) -> None:
    child = start_child((str(tmp_path / "missing"),))
    assert child.process is None
    assert "could not be started" in (child.failure or "")
    dismiss(child)


def test_a_child_that_heeds_nobody_is_left_behind_alive() -> None:
    deaf = "import signal, sys; signal.signal(15, signal.SIG_IGN); print(flush=True); sys.stdin.read()"
    process = subprocess.Popen(
        [sys.executable, "-c", deaf], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    leave_behind(process)
    assert process.poll() is None
    process.communicate()


@pytest.mark.parametrize("heavy", ["gpu_agent.wire.inventory", "logging", "shutil", "asyncio"])
def test_a_head_start_is_not_spent_on_loading(heavy: str) -> None:
    code = f"import sys, gpu_agent.cli.probe.probe as probe; sys.exit({heavy!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=30, check=False).returncode == 0
