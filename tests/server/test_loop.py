"""The loop's own promises, on a machine that is told what to answer."""

import asyncio
import itertools
import time
from collections.abc import Callable, Sequence

import pytest

from gpu_agent.registry.actions import Action, Note, Save
from gpu_agent.registry.events import ConnectionLost, Event, Saved, SaveFailed
from gpu_agent.server.clock import Clock
from gpu_agent.server.loop import FROZEN_SECONDS, SLICE_SECONDS, FleetLoop

TELLING = Note("told")


class Scripted:
    """A machine whose answers are written down beforehand."""

    def __init__(self) -> None:
        self.deadline: float | None = None
        self.answers: dict[Event, Sequence[Action]] = {}
        self.heard: list[Event] = []
        self.woken: list[float] = []
        self.on_waking: Sequence[Action] = ()

    def handle(self, event: Event, now: float) -> Sequence[Action]:  # noqa: ARG002 - the machine's grammar
        self.heard.append(event)
        return self.answers.get(event, ())

    def wake(self, now: float) -> Sequence[Action]:
        self.woken.append(now)
        self.deadline = None
        return self.on_waking


class Hands:
    """Carries out by writing down; saves end as they are told to."""

    def __init__(self) -> None:
        self.done: list[Action] = []
        self.failing: set[int] = set()
        self.lags: list[float] = []
        self.work: Callable[[Action], None] = lambda _: None

    def carry_out(self, action: Action) -> Saved | SaveFailed | None:
        self.work(action)
        self.done.append(action)
        if not isinstance(action, Save):
            return None
        return SaveFailed(action.save, "full") if action.save in self.failing else Saved(action.save)


def driven(machine: Scripted, hands: Hands, *, scan: float = 30.0) -> FleetLoop:
    loop = FleetLoop(
        machine, hands.carry_out, clock=Clock(), scan_interval_seconds=scan, lagged=hands.lags.append
    )
    loop.start()
    return loop


async def test_actions_are_carried_out_in_order_and_kept_saves_are_told() -> None:
    machine, hands = Scripted(), Hands()
    machine.answers[ConnectionLost(1)] = [Save(1, ()), TELLING, Save(2, ())]
    driven(machine, hands).handle(ConnectionLost(1))
    assert hands.done == [Save(1, ()), TELLING, Save(2, ())]
    assert machine.heard == [ConnectionLost(1), Saved(1), Saved(2)]


async def test_nothing_that_stood_behind_a_failed_save_is_told() -> None:
    machine, hands = Scripted(), Hands()
    hands.failing = {1}
    refusal, later = Note("refused"), Note("later")
    machine.answers[ConnectionLost(1)] = [Save(1, ()), TELLING]
    machine.answers[SaveFailed(1, "full")] = [refusal]
    machine.answers[ConnectionLost(2)] = [later]
    loop = driven(machine, hands)
    loop.handle(ConnectionLost(1))
    loop.handle(ConnectionLost(2))
    assert hands.done == [Save(1, ()), refusal, later]


async def test_what_carrying_out_brings_about_waits_its_turn() -> None:
    machine, hands = Scripted(), Hands()
    first, second, nested = Note("first"), Note("second"), Note("nested")
    machine.answers[ConnectionLost(1)] = [first, second]
    machine.answers[ConnectionLost(2)] = [nested]
    loop = driven(machine, hands)
    hands.work = lambda action: loop.handle(ConnectionLost(2)) if action is first else None
    loop.handle(ConnectionLost(1))
    assert hands.done == [first, second, nested]


async def test_a_long_list_lets_others_have_their_turn_and_keeps_its_order() -> None:
    machine, hands = Scripted(), Hands()
    notes = [Note("n", {"number": number}) for number in range(200)]
    machine.answers[ConnectionLost(1)] = notes
    machine.answers[ConnectionLost(2)] = [TELLING]
    hands.work = lambda _: time.sleep(SLICE_SECONDS / 50)
    loop = driven(machine, hands)
    loop.handle(ConnectionLost(1))
    assert len(hands.done) < len(notes)
    loop.handle(ConnectionLost(2))
    while len(hands.done) <= len(notes):  # noqa: ASYNC110 - the loop under test has no event for it
        await asyncio.sleep(0)
    assert hands.done == [*notes, TELLING]


async def test_the_machine_is_woken_at_its_deadline() -> None:
    machine, hands = Scripted(), Hands()
    machine.deadline = time.monotonic() + 0.05
    machine.on_waking = [TELLING]
    wanted = machine.deadline
    driven(machine, hands)
    async with asyncio.timeout(5):
        while not hands.done:  # noqa: ASYNC110 - the loop under test has no event for it
            await asyncio.sleep(0.005)
    assert machine.woken[0] >= wanted
    assert len(hands.lags) == 1


async def test_a_deadline_that_moves_nearer_is_kept() -> None:
    machine, hands = Scripted(), Hands()
    machine.answers[ConnectionLost(1)] = [TELLING]
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


async def test_a_stopped_loop_is_deaf() -> None:
    machine, hands = Scripted(), Hands()
    loop = driven(machine, hands, scan=0.02)
    loop.stop()
    loop.handle(ConnectionLost(1))
    await asyncio.sleep(0.1)  # five scan intervals
    assert (machine.heard, machine.woken) == ([], [])


async def test_an_action_that_breaks_is_dropped_with_its_list_and_the_loop_goes_on() -> None:
    machine, hands = Scripted(), Hands()
    bad, after = Note("bad"), Note("after")
    machine.answers[ConnectionLost(1)] = [bad, TELLING]
    machine.answers[ConnectionLost(2)] = [after]

    def work(action: Action) -> None:
        if action is bad:
            raise ZeroDivisionError

    hands.work = work
    loop = driven(machine, hands)
    with pytest.raises(ZeroDivisionError):
        loop.handle(ConnectionLost(1))
    loop.handle(ConnectionLost(2))
    assert hands.done == [after]


async def test_the_clock_goes_on_after_a_waking_that_breaks() -> None:
    machine, hands = Scripted(), Hands()
    machine.on_waking = [TELLING]
    failures: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
    thrice = asyncio.Event()

    def breaks(_: Action) -> None:
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
        hands.carry_out,
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
    loop = FleetLoop(
        machine,
        hands.carry_out,
        clock=Clock(monotonic=lambda: time.monotonic() + 60.0 * next(steps)),
        scan_interval_seconds=0.02,
        lagged=hands.lags.append,
    )
    loop.start()
    async with asyncio.timeout(5):
        while len(machine.woken) < 3:  # noqa: ASYNC110 - nothing tells when a machine is woken
            await asyncio.sleep(0.01)
    loop.stop()
