import asyncio
import os
import pty
import signal
import subprocess
import sys

import pytest

from gpu_agent.runtime.signals import RELOADING, STOPPING, delivered


async def test_each_signal_arrives_as_a_call_on_the_loop() -> None:
    seen: asyncio.Queue[signal.Signals] = asyncio.Queue()
    with delivered(STOPPING + RELOADING, seen.put_nowait):
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            os.kill(os.getpid(), number)
            async with asyncio.timeout(5):
                assert await seen.get() is number


async def test_what_was_there_before_is_restored() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with delivered(STOPPING, lambda _: None):
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
    with delivered((signal.SIGTERM,), seen.put_nowait):
        os.kill(os.getpid(), signal.SIGTERM)
        async with asyncio.timeout(5):
            assert await seen.get() is signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(("stdin", "ends"), [("terminal", True), ("null", False), ("closed", False)])
def test_a_hang_up_ends_only_what_a_terminal_feeds(stdin: str, *, ends: bool) -> None:
    terminal, fed = pty.openpty()
    close = "import os; os.close(0); " if stdin == "closed" else ""
    words = [
        sys.executable,
        "-c",
        f"{close}from gpu_agent.runtime import signals; print(signals.hang_up_ends())",
    ]
    with os.fdopen(terminal), os.fdopen(fed) as end:
        asked = subprocess.run(
            words, stdin=end if stdin == "terminal" else subprocess.DEVNULL, capture_output=True, check=True
        )
    assert asked.stdout.decode().strip() == str(ends)
