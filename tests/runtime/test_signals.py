import asyncio
import os
import signal

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
