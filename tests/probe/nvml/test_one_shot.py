"""One reading without an event loop: quick, bounded, and always a report."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gpu_agent.probe.nvml.process import abandon, start_child
from gpu_agent.probe.nvml.report import read_once
from gpu_agent.wire.inventory import Outcome
from tests.nvml_fake.control import FakeNvml
from tests.programs import eventually
from tests.waiting import patience


def test_eight_gpus_are_read_at_one_go(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path, gpus=8)
    child = start_child(env=fake.environment())
    report = read_once(child, 20)
    assert (report.outcome, len(report.gpus)) == (Outcome.OK, 8)
    assert report.driver_version == "570.124.06"
    assert child.process is not None
    assert child.process.returncode == 0


def test_a_hung_driver_is_broken_by_the_deadline_counted_from_the_ask(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path)
    fake.set("hang", "nvmlInitWithFlags", "*")
    child = start_child(env=fake.environment())
    assert child.process is not None
    eventually(lambda: "nvmlInitWithFlags" in fake.calls(), within_seconds=10, what="a child in the driver")
    report = read_once(child, 0.5)
    waited_seconds = time.monotonic() - child.requested_at
    assert 0.5 <= waited_seconds < patience(1.5)
    assert report.outcome is Outcome.DRIVER_BROKEN
    assert report.detail is not None
    assert "did not answer within 0.5 s (nvml_hung)" in report.detail
    assert child.process.poll() is None
    fake.unset("hang")
    assert child.process.wait(patience(10)) in (-signal.SIGTERM, 1)


def test_an_answer_from_a_child_that_will_not_end_still_counts() -> None:
    stays = (
        "import sys, time; sys.stdin.readline()\n"
        'print(\'{"id": 1, "outcome": "ok"}\', flush=True); time.sleep(60)\n'
    )
    child = start_child((sys.executable, "-c", stays))
    assert read_once(child, 1.0).outcome is Outcome.OK
    assert child.process is not None
    assert child.process.wait(patience(10)) == -signal.SIGTERM


def test_a_child_that_exits_is_a_broken_driver_with_its_last_stderr_line(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path)
    fake.set("complain", "nvmlInitWithFlags", "*", "vendor library: cannot open device, giving up")
    fake.set("exit", "nvmlInitWithFlags", "*", 1)
    report = read_once(start_child(env=fake.environment()), 20)
    assert report.outcome is Outcome.DRIVER_BROKEN
    assert report.detail is not None
    assert "exit status 1" in report.detail
    assert "vendor library: cannot open device, giving up" in report.detail
    assert "nvidia-smi" in report.detail


def test_a_crash_is_a_broken_driver_naming_the_signal(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path)
    fake.set("crash", "nvmlDeviceGetUUID", "*")
    report = read_once(start_child(env=fake.environment()), 20)
    assert report.outcome is Outcome.DRIVER_BROKEN
    assert "SIGSEGV" in (report.detail or "")


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells the peak of this program alone")
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_child_that_prints_without_end_takes_no_longer_and_no_more_memory(stream: str) -> None:
    code = f"import sys\nwhile True: sys.{stream}.write('x' * 65536)"
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from gpu_agent.probe.nvml.process import start_child\n"
        "from gpu_agent.probe.nvml.report import read_once\n"
        f"report = read_once(start_child((sys.executable, '-c', {code!r})), 3)\n"
        "status = dict(line.split(':', 1) for line in Path('/proc/self/status').read_text().splitlines())\n"
        "print(report.outcome, int(status['VmHWM'].split()[0]) // 1024)\n"  # `ru_maxrss` is the parent's too
    )
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=patience(60), check=True
    )
    outcome, peak_mb = done.stdout.split()
    assert outcome == "driver_broken"
    assert int(peak_mb) < 300
    assert time.monotonic() - began < patience(10)


def test_a_child_that_cannot_be_started_is_a_report_too(tmp_path: Path) -> None:
    report = read_once(start_child((str(tmp_path / "missing"),)))
    assert report.outcome is Outcome.DRIVER_BROKEN
    assert "could not be started" in (report.detail or "")


def test_the_quick_path_loads_neither_asyncio_nor_pydantic() -> None:
    code = (
        "import gpu_agent.probe.nvml.report, sys\n"
        "print([m for m in ('asyncio', 'pydantic', 'pynvml') if m in sys.modules])\n"
    )
    seen = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=patience(30), check=True
    )
    assert seen.stdout.strip() == "[]"


def test_a_child_that_is_not_needed_is_ended_at_once(tmp_path: Path) -> None:
    child = start_child(env=FakeNvml(tmp_path).environment())
    child.dismiss()
    assert child.process is not None
    assert child.process.poll() is not None


def test_a_child_that_cannot_be_started_has_a_reason(tmp_path: Path) -> None:
    child = start_child((str(tmp_path / "missing"),))
    assert child.process is None
    assert "could not be started" in (child.failure or "")
    child.dismiss()


def test_a_child_that_ignores_sigterm_is_left_alive() -> None:
    deaf = "import signal, sys; signal.signal(15, signal.SIG_IGN); print(flush=True); sys.stdin.read()"
    process = subprocess.Popen(
        [sys.executable, "-c", deaf], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    abandon(process)
    assert process.poll() is None
    process.communicate()


@pytest.mark.parametrize("heavy", ["gpu_agent.wire.inventory", "logging", "shutil", "asyncio"])
def test_a_head_start_is_not_spent_on_loading(heavy: str) -> None:
    code = f"import sys, gpu_agent.cli.agent.probe as probe; sys.exit({heavy!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=patience(30), check=False).returncode == 0
