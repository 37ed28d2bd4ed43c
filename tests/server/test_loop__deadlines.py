"""When the loop wakes its machine."""

import asyncio
import itertools
import time
from collections.abc import Sequence

from gpu_agent.registry.actions import Action, Answer
from gpu_agent.registry.events import ConnectionLost, Event
from gpu_agent.server.clock import Clock
from gpu_agent.server.loop import FROZEN_SECONDS, FleetLoop
from gpu_agent.server.writer import Writer
from tests.server.driven_loop import Disk, Hands, Scripted, driven
from tests.server.loop_texts import TELLING


async def test_the_machine_is_woken_at_its_deadline() -> None:
    machine, hands = Scripted(), Hands()
    machine.deadline = time.monotonic() + 0.05
    machine.on_waking = [Answer(1, None)]
    wanted = machine.deadline
    driven(machine, hands)
    async with asyncio.timeout(5):
        while not hands.done:  # noqa: ASYNC110 - the loop under test has no event for it
            await asyncio.sleep(0.005)
    assert machine.woken[0] >= wanted
    assert len(hands.lags) == 1


async def test_a_deadline_that_moves_nearer_is_kept() -> None:
    machine, hands = Scripted(), Hands()
    machine.answers[ConnectionLost(1)] = [Answer(1, None)]
    loop = driven(machine, hands)
    machine.deadline = time.monotonic() + 0.05
    loop.handle(ConnectionLost(1))
    async with asyncio.timeout(5):
        while not machine.woken:  # noqa: ASYNC110 - the loop under test has no event for it
            await asyncio.sleep(0.005)


async def test_without_a_deadline_the_machine_is_looked_at_once_a_scan_interval() -> None:
    machine = Scripted()
    driven(machine, Hands(), scan=0.05)
    async with asyncio.timeout(5):
        while len(machine.woken) < 3:  # noqa: ASYNC110 - the loop under test has no event for it
            await asyncio.sleep(0.005)
    assert machine.woken[2] - machine.woken[0] >= 0.09


async def test_the_clock_goes_on_after_a_waking_that_breaks() -> None:
    machine, hands = Scripted(), Hands()
    machine.on_waking = [Answer(1, None)]
    failures: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
    thrice = asyncio.Event()

    def breaks(_: str) -> None:
        if len(machine.woken) == 3:
            thrice.set()
        raise RuntimeError("boom")

    hands.work = breaks
    loop = driven(machine, hands, scan=0.01)
    await asyncio.wait_for(thrice.wait(), 5)
    loop.stop()
    assert len(failures) >= 2


async def test_after_standing_still_what_waits_in_the_sockets_is_heard_before_anybody_is_judged() -> None:
    """A registry that was stopped for a minute must not call silent whoever it did not listen to."""
    jump = 0.0
    machine, hands = Scripted(), Hands()
    waited = ConnectionLost(7)
    woken = asyncio.Event()
    heard_when_woken: list[list[Event]] = []

    def lagged(lag: float) -> None:
        if lag > FROZEN_SECONDS:
            asyncio.get_running_loop().call_soon(loop.handle, waited)
        if lag <= FROZEN_SECONDS and jump:
            heard_when_woken.append(list(machine.heard))
            woken.set()

    loop = FleetLoop(
        machine,
        hands,
        Writer(Disk()),
        clock=Clock(monotonic=lambda: time.monotonic() + jump),
        scan_interval_seconds=0.02,
        lagged=lagged,
    )
    loop.start()
    jump = 60.0
    await asyncio.wait_for(woken.wait(), 5)
    loop.stop()
    assert heard_when_woken[0] == [waited]


async def test_a_machine_that_is_always_late_is_still_woken() -> None:
    machine, hands = Scripted(), Hands()
    steps = itertools.count()
    clock = Clock(monotonic=lambda: time.monotonic() + 60.0 * next(steps))
    loop = driven(machine, hands, scan=0.02, clock=clock)
    async with asyncio.timeout(5):
        while len(machine.woken) < 3:  # noqa: ASYNC110 - nothing tells when a machine is woken
            await asyncio.sleep(0.01)
    loop.stop()


async def test_a_machine_that_has_left_something_is_woken_again_at_once_after_others_had_a_turn() -> None:
    machine, hands = Scripted(), Hands()
    turns: list[int] = []

    class Large(Scripted):
        def wake(self, now: float) -> Sequence[Action]:
            super().wake(now)
            self.deadline = now if len(self.woken) < 50 else None
            asyncio.get_running_loop().call_soon(turns.append, len(self.woken))
            return ()

    machine = Large()
    machine.deadline = time.monotonic()
    began = time.monotonic()
    driven(machine, hands)
    async with asyncio.timeout(5):
        while len(machine.woken) < 50:  # noqa: ASYNC110 - the loop under test has no event for it
            await asyncio.sleep(0)
    assert time.monotonic() - began < 0.5
    assert turns[:49] == list(range(1, 50))


async def test_what_is_timed_is_the_machines_own_thinking() -> None:
    class Slow(Scripted):
        def handle(self, event: Event, now: float) -> Sequence[Action]:
            time.sleep(0.02)
            return super().handle(event, now)

    machine, hands = Slow(), Hands()
    machine.answers[ConnectionLost(1)] = [TELLING]
    hands.work = lambda _: time.sleep(0.2)
    loop = driven(machine, hands)
    assert 0.02 <= loop.timed(ConnectionLost(1)) < 0.2
    await loop.settled()
    assert hands.done == ["told"]
    loop.stop()
    assert loop.timed(ConnectionLost(1)) == 0.0
