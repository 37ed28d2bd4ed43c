import asyncio
import os
import pty
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest

from gpu_agent.runtime.signals import RELOADING, STOPPING, run_as_first_process, signals_to_loop
from tests.programs import eventually
from tests.waiting import patience


async def test_each_signal_arrives_as_a_call_on_the_loop() -> None:
    seen: asyncio.Queue[signal.Signals] = asyncio.Queue()
    with signals_to_loop(STOPPING + RELOADING, seen.put_nowait):
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            os.kill(os.getpid(), number)
            async with asyncio.timeout(patience(5)):
                assert await seen.get() is number


async def test_what_was_there_before_is_restored() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with signals_to_loop(STOPPING, lambda _: None):
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


async def test_a_loop_without_signal_support_falls_back_to_plain_handlers() -> None:
    loop = asyncio.get_running_loop()
    seen: asyncio.Queue[signal.Signals] = asyncio.Queue()
    before = signal.getsignal(signal.SIGTERM)

    def unsupported(*_: object) -> None:
        raise NotImplementedError

    loop.add_signal_handler = unsupported  # type: ignore[assignment]  # as Windows' loops behave
    loop.remove_signal_handler = unsupported  # type: ignore[assignment]  # the same
    with signals_to_loop((signal.SIGTERM,), seen.put_nowait):
        os.kill(os.getpid(), signal.SIGTERM)
        async with asyncio.timeout(patience(5)):
            assert await seen.get() is signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(("stdin", "ends"), [("terminal", True), ("null", False), ("closed", False)])
def test_a_hang_up_ends_only_what_a_terminal_feeds(stdin: str, *, ends: bool) -> None:
    terminal, fed = pty.openpty()
    close = "import os; os.close(0); " if stdin == "closed" else ""
    words = [
        sys.executable,
        "-c",
        f"{close}from gpu_agent.runtime import signals; print(signals.terminal_attached())",
    ]
    with os.fdopen(terminal), os.fdopen(fed) as end:
        asked = subprocess.run(
            words, stdin=end if stdin == "terminal" else subprocess.DEVNULL, capture_output=True, check=True
        )
    assert asked.stdout.decode().strip() == str(ends)


PROGRAM = """
import os, signal, subprocess, sys
from gpu_agent.runtime.signals import run_as_first_process

def work():
    taken = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
    signal.pthread_sigmask(signal.SIG_BLOCK, taken)
    own = subprocess.run(["sh", "-c", "(sleep 0.1 &) ; exit 3"]).returncode
    print(os.getpid(), own, flush=True)
    while True:
        number = signal.sigwait(taken)
        print(signal.Signals(number).name, flush=True)
        if number == signal.SIGTERM:
            return 5
sys.exit(run_as_first_process(work))
"""


@contextmanager
def as_pid_1(program: str) -> Iterator["subprocess.Popen[str]"]:
    apart = ("unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child")
    if not sys.platform.startswith("linux") or shutil.which("unshare") is None:
        pytest.skip("only Linux with util-linux gives a process a number of its own")
    if subprocess.run([*apart, "true"], check=False, capture_output=True).returncode != 0:
        pytest.skip("namespaces of its own are not allowed to this process")
    with subprocess.Popen(
        [*apart, sys.executable, "-c", program], stdout=subprocess.PIPE, text=True
    ) as started:
        try:
            yield started
        finally:
            started.kill()


def first_process(started: "subprocess.Popen[str]") -> psutil.Process:
    return psutil.Process(started.pid).children()[0]


def test_signals_are_handed_on_and_the_code_is_the_program_s() -> None:
    with as_pid_1(PROGRAM) as started:
        assert started.stdout is not None
        assert started.stdout.readline().split() == ["2", "3"]
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            first_process(started).send_signal(number)
            assert started.stdout.readline().strip() == number.name
        assert started.wait(patience(10)) == 5


def test_how_the_parent_had_set_signals_changes_nothing() -> None:
    careless = (
        "import signal\nsignal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})\n"
    )
    lets_itself_be_ended = PROGRAM.replace("signal.pthread_sigmask(signal.SIG_BLOCK, taken)", "").replace(
        "signal.sigwait(taken)", "signal.pause()"
    )
    with as_pid_1(careless + lets_itself_be_ended) as started:
        assert started.stdout is not None
        assert started.stdout.readline().split() == ["2", "3"]
        first_process(started).send_signal(signal.SIGTERM)
        assert started.wait(patience(10)) == 128 + signal.SIGTERM


def test_an_orphan_that_ends_leaves_no_zombie() -> None:
    with as_pid_1(PROGRAM) as started:
        assert started.stdout is not None
        started.stdout.readline()
        program = first_process(started).children()[0]
        eventually(
            lambda: first_process(started).children() == [program], within_seconds=10, what="no zombies"
        )
        assert program.is_running()


def test_a_program_that_is_killed_ends_with_the_code_that_shells_give() -> None:
    with as_pid_1(PROGRAM) as started:
        assert started.stdout is not None
        started.stdout.readline()
        first_process(started).children()[0].kill()
        assert started.wait(patience(10)) == 128 + signal.SIGKILL


def test_elsewhere_the_work_is_done_here() -> None:
    assert run_as_first_process(lambda: 7) == 7
