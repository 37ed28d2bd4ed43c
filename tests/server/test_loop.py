"""The loop's own promises, on a machine that is told what to answer."""

import asyncio
import time

import pytest

from gpu_agent.registry.actions import Answer, Level, Note, Refusal
from gpu_agent.registry.events import ConnectionLost, Saved, SaveFailed
from gpu_agent.server import writer
from gpu_agent.server.loop import SLICE_SECONDS
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
    machine.answers[SaveFailed(1, "full")] = [Note("refused", level=Level.DEBUG)]
    machine.answers[ConnectionLost(2)] = [save(2, "node-2"), Note("later")]
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
    machine.answers[ConnectionLost(3)] = [STATUS, Note("seen"), Answer(3, None)]
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
