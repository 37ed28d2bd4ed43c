import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from gpu_agent.probe.health.tracker import MissedReading
from gpu_agent.probe.nvml import stuck_child
from gpu_agent.probe.nvml.client import NvmlClient
from gpu_agent.probe.nvml.process import CHILD_COMMAND, start_child
from gpu_agent.probe.nvml.stuck_child import CHILD_NAME, find_stuck_child
from gpu_agent.wire.inventory import GpuReport
from tests.nvml_fake.control import HELD, FakeNvml
from tests.waiting import patience

PIPES: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
NAME = "gpu-agent-test"
"""Not the true one: a probe beside this test must not meet what this test gets stuck."""
PROGRAM = f"""
import signal, sys
from gpu_agent.probe.nvml.stuck_child import Registration
registered = Registration({NAME!r})
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
print(flush=True)
sys.stdin.read()
"""
RENEWS = """
for _ in sys.stdin:
    registered.renew()
    print(flush=True)
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux only")


@pytest.fixture
def deaf() -> Iterator[subprocess.Popen[bytes]]:
    """A process that a signal to end waits for, as for one that is stuck in the kernel."""
    process = subprocess.Popen([sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    yield process
    process.communicate()


def test_a_child_without_a_pending_sigterm_is_not_stuck(deaf: subprocess.Popen[bytes]) -> None:
    assert deaf.poll() is None
    assert find_stuck_child(NAME) is None


def test_a_child_with_a_pending_sigterm_is_found_until_it_ends(
    deaf: subprocess.Popen[bytes],
) -> None:
    deaf.terminate()
    assert find_stuck_child(NAME) == deaf.pid
    assert deaf.stdin is not None
    deaf.stdin.close()
    deaf.wait(patience(10))
    deaf.stdin = None
    assert find_stuck_child(NAME) is None


def test_beside_a_stuck_child_no_other_is_started(deaf: subprocess.Popen[bytes]) -> None:
    deaf.terminate()
    child = start_child(name=NAME)
    assert child.process is None
    assert f"Process {deaf.pid}, an earlier NVML child" in (child.failure or "")
    assert "nvml_hung" in (child.failure or "")


async def test_an_agent_that_starts_beside_a_stuck_child_waits_for_its_end(
    deaf: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    fake = FakeNvml(tmp_path, gpus=2)
    probe = NvmlClient(env=fake.environment(), name=NAME)
    deaf.terminate()
    try:
        missed = await probe.read()
        assert isinstance(missed, MissedReading)
        assert (missed.reason, fake.callers()) == ("nvml_hung", [])
        assert f"Process {deaf.pid}, an earlier NVML child" in missed.detail
        deaf.communicate()
        report = await probe.read()
        assert isinstance(report, GpuReport)
        assert len(report.gpus) == 2
    finally:
        await probe.close()


def test_a_child_that_the_fake_driver_holds_is_no_other_tests_matter(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path)
    fake.set("hang", "nvmlInitWithFlags", "*")
    child = start_child(env=fake.environment()).process
    assert child is not None
    try:
        while _name(child) != HELD:
            assert child.poll() is None
        child.terminate()
        assert find_stuck_child() != child.pid
        assert child.poll() is None
    finally:
        fake.unset("hang")
        child.communicate()


def test_the_search_for_a_stuck_child_reads_no_other_process(
    deaf: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_name: str) -> list[str]:
        pytest.fail("all processes were searched")

    monkeypatch.setattr(stuck_child, "_pids_named", refuse)
    assert find_stuck_child(NAME) is None
    deaf.terminate()
    assert find_stuck_child(NAME) == deaf.pid


@pytest.mark.usefixtures("deaf")
def test_a_stuck_child_is_found_among_more_children_than_have_an_address() -> None:
    others = [
        subprocess.Popen([sys.executable, "-c", PROGRAM], **PIPES) for _ in range(stuck_child.ADDRESSES)
    ]
    try:
        for other in others:
            assert other.stdout is not None
            other.stdout.readline()
        last = others[-1]
        last.terminate()
        assert find_stuck_child(NAME) == last.pid
    finally:
        for other in others:
            other.communicate()


def test_a_stuck_child_is_found_behind_an_address_that_another_program_took() -> None:
    with socket.socket(socket.AF_UNIX) as foreign:
        foreign.bind(f"\0{NAME}/{os.geteuid()}/0")  # taken, and nobody listens
        child = subprocess.Popen([sys.executable, "-c", PROGRAM], **PIPES)
        try:
            assert child.stdout is not None
            child.stdout.readline()
            child.terminate()
            assert find_stuck_child(NAME) == child.pid
        finally:
            child.communicate()


def test_a_stuck_child_that_found_no_address_free_is_found_by_its_name() -> None:
    with ExitStack() as taken:
        for number in range(stuck_child.ADDRESSES):
            foreign = taken.enter_context(socket.socket(socket.AF_UNIX))
            foreign.bind(f"\0{NAME}/{os.geteuid()}/{number}")
        child = subprocess.Popen([sys.executable, "-c", PROGRAM], **PIPES)
        try:
            assert child.stdout is not None
            child.stdout.readline()
            child.terminate()
            assert find_stuck_child(NAME) == child.pid
        finally:
            child.communicate()


def test_an_address_that_has_no_room_for_a_search_is_no_answer(deaf: subprocess.Popen[bytes]) -> None:
    for _ in range(stuck_child.WAITING + 2):
        assert find_stuck_child(NAME) is None
    deaf.terminate()
    assert find_stuck_child(NAME) == deaf.pid


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a process of another user")
def test_an_address_of_another_users_program_leads_to_a_search(deaf: subprocess.Popen[bytes]) -> None:
    address = f"\0{NAME}/{os.geteuid()}/1"
    program = f"""
import os, socket, sys
os.setuid(65534)
taken = socket.socket(socket.AF_UNIX)
taken.bind({address!r})
taken.listen()
print(flush=True)
sys.stdin.read()
"""
    squatter = subprocess.Popen([sys.executable, "-c", program], **PIPES)
    try:
        assert squatter.stdout is not None
        squatter.stdout.readline()
        assert find_stuck_child(NAME) is None
        deaf.terminate()
        assert find_stuck_child(NAME) == deaf.pid
    finally:
        squatter.communicate()


def test_a_childs_address_has_room_for_searches_again_once_it_registers_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    searched: list[str] = []

    def search(name: str) -> list[str]:
        searched.append(name)
        return []

    monkeypatch.setattr(stuck_child, "_pids_named", search)
    program = PROGRAM.replace("sys.stdin.read()", RENEWS)
    with subprocess.Popen([sys.executable, "-c", program], **PIPES) as child:
        assert child.stdout is not None
        assert child.stdin is not None
        child.stdout.readline()
        for _ in range(stuck_child.WAITING + 1):
            find_stuck_child(NAME)
        assert searched == []
        find_stuck_child(NAME)
        assert searched == [NAME]
        child.stdin.write(b"\n")
        child.stdin.flush()
        child.stdout.readline()
        find_stuck_child(NAME)
        assert searched == [NAME]


def test_a_stuck_check_of_a_gpu_is_found_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stuck_child, "_pids_named", lambda _: [])
    device = tmp_path / "bus/pci/devices/0000:01:00.0"
    device.mkdir(parents=True)
    os.mkfifo(device / "current_link_width")  # opening it to read waits for a writer
    asked = {"sys_dir": str(tmp_path), "pci_bus_id": "00000000:01:00.0", "copies": False}
    deaf = (
        "import os, signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM]);"
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    words = (sys.executable, "-P", "-m", "gpu_agent.probe.checks.child", json.dumps(asked))
    with subprocess.Popen([sys.executable, "-c", deaf, *words]) as check:
        await_name(check, stuck_child.CHECK_NAME)
        check.terminate()
        assert find_stuck_child(stuck_child.CHECK_NAME) == check.pid
        (device / "current_link_width").open("wb").close()
    assert find_stuck_child(stuck_child.CHECK_NAME) is None


def test_an_nvml_child_goes_by_its_name() -> None:
    child = subprocess.Popen(CHILD_COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(b'{"id": 1, "request": "read"}\n')
    child.stdin.flush()
    child.stdout.readline()
    try:
        assert _name(child) == CHILD_NAME
    finally:
        child.communicate()


def await_name(process: subprocess.Popen[bytes], name: str) -> None:
    while _name(process) != name:
        assert process.poll() is None


def _name(process: subprocess.Popen[bytes]) -> str:
    return Path(f"/proc/{process.pid}/comm").read_text().strip()
