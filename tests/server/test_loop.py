"""The loop's own promises, on a machine that is told what to answer."""

import asyncio
import itertools
import time
from collections.abc import Sequence

import pytest

from gpu_agent.registry.actions import Action, Answer, Level, LogEvent, Refusal
from gpu_agent.registry.events import ConnectionLost, Event, Saved, SaveFailed
from gpu_agent.server import writer
from gpu_agent.server.clock import Clock
from gpu_agent.server.loop import FROZEN_SECONDS, SLICE_SECONDS, FleetLoop
from gpu_agent.server.writer import Writer
from tests.server.driven_loop import Disk, Hands, Scripted, driven, save
from tests.server.harness import until
from tests.server.loop_texts import STALLED, STATUS, TELLING


async def test_actions_are_carried_out_in_order_once_their_save_is_kept() -> None:
    machine, hands, disk = Scripted(), Hands(), Disk()
    machine.answers[ConnectionLost(1)] = [save(1), TELLING, Answer(1, None)]
    loop = driven(machine, hands, store=disk)
    disk.turning.clear()
    loop.handle(ConnectionLost(1))
    assert not await loop.settled(within_seconds=0.05)
    assert hands.done == []
    disk.turning.set()
    assert await loop.settled()
    assert hands.done == ["told", "answer 1"]
    assert machine.heard == [ConnectionLost(1), Saved(1)]
    assert [one.document for one in disk.load().changes] != []
    assert [one.event for one in disk.load().recent] == ["told"]


async def test_a_list_that_keeps_nothing_waits_for_those_before_it() -> None:
    machine, hands, disk = Scripted(), Hands(), Disk()
    machine.answers[ConnectionLost(1)] = [save(1), TELLING]
    machine.answers[ConnectionLost(2)] = [Answer(2, None)]
    loop = driven(machine, hands, store=disk)
    loop.handle(ConnectionLost(2))
    assert hands.done == ["answer 2"]
    loop.handle(ConnectionLost(1))
    loop.handle(ConnectionLost(2))
    assert hands.done == ["answer 2"]
    assert await loop.settled()
    assert hands.done == ["answer 2", "told", "answer 2"]


async def test_nothing_that_stood_behind_a_failed_save_is_told_and_what_comes_later_is() -> None:
    machine, hands, disk = Scripted(), Hands(), Disk()
    disk.refused = {"node-1"}
    machine.answers[ConnectionLost(1)] = [save(1), TELLING]
    machine.answers[SaveFailed(1, "full")] = [LogEvent("refused", level=Level.DEBUG)]
    machine.answers[ConnectionLost(2)] = [save(2, "node-2"), LogEvent("later")]
    loop = driven(machine, hands, store=disk)
    loop.handle(ConnectionLost(1))
    loop.handle(ConnectionLost(2))
    while len(hands.done) < 2:
        assert await loop.settled()
    assert hands.done == ["later", "refused"]


async def test_an_event_that_cannot_be_kept_is_told_without_a_number() -> None:
    machine, hands, disk = Scripted(), Hands(), Disk()
    disk.full = True
    machine.answers[ConnectionLost(1)] = [TELLING, Answer(1, None)]
    loop = driven(machine, hands, store=disk)
    loop.handle(ConnectionLost(1))
    assert await loop.settled()
    assert hands.done == ["told", "answer 1"]
    assert [one.id for one in hands.published] == [None]


async def test_while_the_store_does_not_answer_requests_are_refused_and_what_waits_stays_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(writer, "STALL_SECONDS", 0.05)
    machine, hands, disk = Scripted(), Hands(), Disk()
    machine.answers[ConnectionLost(1)] = [save(1), TELLING]
    machine.answers[ConnectionLost(2)] = [save(2, "node-2"), Answer(2, None)]
    machine.answers[SaveFailed(2, STALLED)] = [Answer(2, Refusal("REGISTRY_BUSY", "again"))]
    machine.answers[ConnectionLost(3)] = [STATUS, LogEvent("seen"), Answer(3, None)]
    loop = driven(machine, hands, store=disk)
    disk.turning.clear()
    loop.handle(ConnectionLost(1))
    await until(lambda: loop._writer.overwhelmed, what="a stalled store")
    loop.handle(ConnectionLost(2))
    loop.handle(ConnectionLost(3))
    assert hands.done == ["answer 2", "seen", "answer 3"]
    assert [one.id for one in hands.published] == [None]
    assert len(loop._courses) == 1
    disk.turning.set()
    assert await loop.settled()
    assert hands.done[3:] == ["told"]


async def test_many_answers_at_once_are_carried_out_in_slices() -> None:
    machine, hands, disk = Scripted(), Hands(), Disk()
    hands.work = lambda _: time.sleep(SLICE_SECONDS / 50)
    loop = driven(machine, hands, store=disk)
    disk.turning.clear()
    for number in range(1, 201):
        machine.answers[ConnectionLost(number)] = [save(number, f"node-{number}"), Answer(number, None)]
        loop.handle(ConnectionLost(number))
    disk.turning.set()
    longest = began = 0.0
    while len(hands.done) < 200:
        began = time.monotonic()
        await asyncio.sleep(0)
        longest = max(longest, time.monotonic() - began)
    assert hands.done == [f"answer {number}" for number in range(1, 201)]
    assert longest < 10 * SLICE_SECONDS


async def test_after_an_action_that_breaks_what_waited_behind_it_is_still_told() -> None:
    machine, hands, disk = Scripted(), Hands(), Disk()
    failures: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
    machine.answers[ConnectionLost(1)] = [save(1, "a"), Answer(1, None), Answer(2, None)]
    machine.answers[ConnectionLost(2)] = [save(2, "b"), Answer(3, None)]

    def work(name: str) -> None:
        if name == "answer 1":
            raise ZeroDivisionError

    hands.work = work
    loop = driven(machine, hands, store=disk)
    loop.handle(ConnectionLost(1))
    loop.handle(ConnectionLost(2))
    assert await loop.settled()
    assert hands.done == ["answer 3"]
    assert len(failures) == 1


async def test_what_carrying_out_brings_about_waits_its_turn() -> None:
    machine, hands = Scripted(), Hands()
    machine.answers[ConnectionLost(1)] = [Answer(1, None), Answer(2, None)]
    machine.answers[ConnectionLost(2)] = [Answer(3, None)]
    loop = driven(machine, hands)
    hands.work = lambda name: loop.handle(ConnectionLost(2)) if name == "answer 1" else None
    loop.handle(ConnectionLost(1))
    assert hands.done == ["answer 1", "answer 2", "answer 3"]


async def test_a_long_list_lets_others_have_their_turn_and_keeps_its_order() -> None:
    machine, hands = Scripted(), Hands()
    answers = [Answer(number, None) for number in range(200)]
    machine.answers[ConnectionLost(1)] = answers
    machine.answers[ConnectionLost(2)] = [Answer(200, None)]
    hands.work = lambda _: time.sleep(SLICE_SECONDS / 50)
    loop = driven(machine, hands)
    loop.handle(ConnectionLost(1))
    assert len(hands.done) < len(answers)
    loop.handle(ConnectionLost(2))
    assert await loop.settled()
    assert hands.done == [f"answer {number}" for number in range(201)]


async def test_a_stopped_loop_is_deaf() -> None:
    machine, hands = Scripted(), Hands()
    loop = driven(machine, hands, scan=0.02)
    loop.stop()
    loop.handle(ConnectionLost(1))
    await asyncio.sleep(0.1)  # five scan intervals
    assert (machine.heard, machine.woken) == ([], [])


async def test_an_action_that_breaks_is_dropped_with_its_list_and_the_loop_goes_on() -> None:
    machine, hands = Scripted(), Hands()
    machine.answers[ConnectionLost(1)] = [Answer(1, None), Answer(2, None)]
    machine.answers[ConnectionLost(2)] = [Answer(3, None)]

    def work(name: str) -> None:
        if name == "answer 1":
            raise ZeroDivisionError

    hands.work = work
    loop = driven(machine, hands)
    with pytest.raises(ZeroDivisionError):
        loop.handle(ConnectionLost(1))
    loop.handle(ConnectionLost(2))
    assert hands.done == ["answer 3"]


# When the loop wakes its machine.


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
