"""The loop stores before it sends, in order, retries what fails, and keeps the fleet's deadlines."""

import asyncio
import itertools
import threading
import time
from collections.abc import Callable, Sequence

import pytest

from gpu_agent.registry.actions import (
    NOTHING,
    Answer,
    Change,
    CloseConnection,
    DocumentKind,
    Effect,
    LogEvent,
    Output,
    Refusal,
    Send,
    SendStatus,
)
from gpu_agent.registry.events import ConnectionLost, Event, Stored, StoreFailed, StoreRecovered
from gpu_agent.server import loop as loop_module
from gpu_agent.server.effects import Executable, Prepared, PublishEvent, UpdateHistories, prepare
from gpu_agent.server.event_log import RegistryEventLog
from gpu_agent.server.loop import FROZEN_SECONDS, SLICE_SECONDS, FleetLoop
from gpu_agent.server.views import Clock
from gpu_agent.server.writer import Writer
from gpu_agent.store.base import Batch, Store, StoreError
from gpu_agent.store.memory import MemoryStore
from gpu_agent.wire.api import RegistryEvent
from gpu_agent.wire.codes import NodeStatus, ReasonCode
from gpu_agent.wire.messages import NodeError, NodeRegisterAck
from tests.server.harness import until
from tests.waiting import patience

LOGGED = LogEvent("logged")


class Scripted:
    """A machine whose outputs are written down beforehand."""

    def __init__(self) -> None:
        self.deadline: float | None = None
        self.outputs: dict[Event, Output] = {}
        self.received: list[Event] = []
        self.woken: list[float] = []
        self.on_waking = NOTHING

    def handle(self, event: Event, now: float) -> Output:  # noqa: ARG002 - the machine's grammar
        self.received.append(event)
        return self.outputs.get(event, NOTHING)

    def wake(self, now: float) -> Output:
        self.woken.append(now)
        self.deadline = None
        return self.on_waking


class Executor:
    """Prepares as the true executor does, and carries effects out by writing them down."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.executed: list[Executable] = []
        self.published: list[RegistryEvent] = []
        self.lags: list[float] = []
        self.work: Callable[[str], None] = lambda _: None
        self._event_log = RegistryEventLog()

    def prepare(self, output: Output) -> Prepared:
        return prepare(output, event_log=self._event_log, clock=Clock())

    def execute(self, effect: Executable) -> None:
        if isinstance(effect, UpdateHistories):
            return
        if isinstance(effect, PublishEvent):
            self.published.append(effect.event)
        name = named(effect)
        self.work(name)
        self.done.append(name)
        self.executed.append(effect)


class Disk(MemoryStore):
    """Can be full, can stop to turn, and can store something and say that it failed."""

    def __init__(self) -> None:
        super().__init__()
        self.full = self.lies = False
        self.commits: list[int] = []
        self.turning = threading.Event()
        self.turning.set()

    def save(self, batches: Sequence[Batch]) -> None:
        self.turning.wait(patience(10))
        if self.full:
            raise StoreError("full")
        super().save(batches)
        self.commits.append(len(batches))
        if self.lies:
            raise StoreError("the connection broke")

    def documents(self) -> dict[str, object]:
        return {change.key: (change.document or {})["document"] for change in self.load().changes}


def named(effect: Executable) -> str:
    match effect:
        case PublishEvent(event):
            return event.event
        case LogEvent(name):
            return name
        case Answer(ref, Refusal(code)):
            return f"answer {ref}: {code}"
        case Answer(ref):
            return f"answer {ref}"
        case Send(connection, NodeError(code=code)):
            return f"send {connection}: {code}"
        case _:
            return type(effect).__name__


def driven(
    machine: Scripted,
    executor: Executor,
    *,
    scan: float = 30.0,
    store: Store | None = None,
    pause_seconds: float = 0.0,
    monotonic: Callable[[], float] = time.monotonic,
) -> FleetLoop:
    loop = FleetLoop(
        machine,
        executor,
        Writer(store or Disk(), pause_seconds=pause_seconds),
        monotonic=monotonic,
        scan_interval_seconds=scan,
        lagged=executor.lags.append,
    )
    loop.start()
    return loop


def fails_on(effect: str) -> Callable[[str], None]:
    def work(name: str) -> None:
        if name == effect:
            raise ZeroDivisionError

    return work


def output(number: int, *effects: Effect, key: str = "node-1") -> Output:
    return Output((Change(DocumentKind.NODE, key, {"number": number}),), effects, number)


def status_of(node_id: str, status: NodeStatus) -> SendStatus:
    return SendStatus(
        connection=3,
        node_id=node_id,
        status=status,
        reason_code=ReasonCode.HEALTH_CHECKS_PASSED,
        reason="well",
        since=1.0,
    )


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the waits."""
    monkeypatch.setattr(loop_module, "ANSWER_SECONDS", 0.05)
    monkeypatch.setattr(loop_module, "RETRY_SECONDS", 0.02)


async def test_effects_are_carried_out_in_order_once_their_changes_are_stored() -> None:
    machine, executor, disk = Scripted(), Executor(), Disk()
    machine.outputs[ConnectionLost(1)] = output(1, LOGGED, Answer(1, None))
    loop = driven(machine, executor, store=disk)
    disk.turning.clear()
    loop.handle(ConnectionLost(1))
    assert not await loop.settled(within_seconds=0.05)
    assert executor.done == []
    disk.turning.set()
    assert await loop.settled()
    assert executor.done == ["logged", "answer 1"]
    assert machine.received == [ConnectionLost(1), Stored(1)]
    assert disk.documents() == {"node-1": {"number": 1}}
    assert [one.event for one in disk.load().recent] == ["logged"]


async def test_what_arrives_in_one_turn_is_stored_by_one_commit() -> None:
    machine, executor, disk = Scripted(), Executor(), Disk()
    loop = driven(machine, executor, store=disk)
    for number in range(1, 4):
        machine.outputs[ConnectionLost(number)] = output(number, key=f"node-{number}")
        loop.handle(ConnectionLost(number))
    assert await loop.settled()
    assert disk.commits == [3]


async def test_what_gathers_while_one_commit_runs_is_stored_by_the_next_one() -> None:
    machine, executor, disk = Scripted(), Executor(), Disk()
    loop = driven(machine, executor, store=disk)
    disk.turning.clear()
    for number in range(1, 4):
        machine.outputs[ConnectionLost(number)] = output(number, key=f"node-{number}")
        loop.handle(ConnectionLost(number))
        await asyncio.sleep(0)
    disk.turning.set()
    assert await loop.settled()
    assert disk.commits == [1, 2]
    assert [event for event in machine.received if isinstance(event, Stored)] == [Stored(1), Stored(3)]


@pytest.mark.usefixtures("hasty")
async def test_the_store_is_behind_once_an_output_has_waited_for_it_unless_it_fails() -> None:
    now, machine, disk = 100.0, Scripted(), Disk()
    loop = driven(machine, Executor(), store=disk, monotonic=lambda: now)
    machine.outputs[ConnectionLost(1)] = output(1)
    disk.turning.clear()
    loop.handle(ConnectionLost(1))
    assert not loop.is_store_behind()
    now += loop_module.BEHIND_SECONDS + 0.1
    assert loop.is_store_behind()
    await until(lambda: loop.store_problem, what="the store failing")
    assert not loop.is_store_behind()
    disk.turning.set()
    assert await loop.flush(within_seconds=patience(5))


async def test_as_many_documents_are_stored_by_one_commit_as_fit_and_as_many_events(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a gateway that is lost thousands of nodes are disconnected, each by an event without a document."""
    monkeypatch.setattr(loop_module, "MOST_DOCUMENTS_IN_A_COMMIT", 2)
    monkeypatch.setattr(loop_module, "MOST_IN_A_COMMIT", 5)
    machine, executor, disk = Scripted(), Executor(), Disk()
    loop = driven(machine, executor, store=disk)

    async def said(*keys: str | None) -> list[int]:
        for number, key in enumerate(keys, 1):
            log = LogEvent("node_disconnected", {"node_id": "node-1"})
            machine.outputs[ConnectionLost(number)] = (
                Output(effects=(log,)) if key is None else output(number, key=key)
            )
            loop.handle(ConnectionLost(number))
        assert await loop.settled()
        commits, disk.commits = disk.commits, []
        return commits

    assert await said("a", "b", "c", "d", "e") == [2, 2, 1]
    assert await said(None, "a", None, "b", None, None) == [5, 1]
    assert await said("a", "b", None, "c", None) == [3, 2]


async def test_behind_a_commit_of_several_the_next_one_waits_for_more_behind_one_it_does_not() -> None:
    machine, executor, disk = Scripted(), Executor(), Disk()
    loop = driven(machine, executor, store=disk, pause_seconds=1.0)

    async def said(*numbers: int) -> None:
        for number in numbers:
            machine.outputs[ConnectionLost(number)] = output(number, key=f"node-{number}")
            loop.handle(ConnectionLost(number))
            await asyncio.sleep(0)  # in turns of their own

    await said(1)
    assert await loop.settled()
    await said(2, 3)
    assert await loop.settled()
    assert disk.commits == [1, 1, 1]
    disk.turning.clear()
    await said(4, 5, 6)
    disk.turning.set()
    await until(lambda: machine.received[-1] == Stored(6), what="the commit of two")
    await said(7, 8)
    assert await loop.settled()
    await said(9)
    assert await loop.flush(within_seconds=patience(10))
    assert disk.commits == [1, 1, 1, 1, 2, 2, 1]


async def test_an_output_that_changes_nothing_waits_for_those_before_it() -> None:
    machine, executor, disk = Scripted(), Executor(), Disk()
    machine.outputs[ConnectionLost(1)] = output(1, LOGGED)
    machine.outputs[ConnectionLost(2)] = Output(effects=(Answer(2, None),))
    loop = driven(machine, executor, store=disk)
    loop.handle(ConnectionLost(2))
    assert executor.done == ["answer 2"]
    loop.handle(ConnectionLost(1))
    loop.handle(ConnectionLost(2))
    assert executor.done == ["answer 2"]
    assert await loop.settled()
    assert executor.done == ["answer 2", "logged", "answer 2"]


async def test_an_immediate_answer_waits_for_nothing() -> None:
    machine, executor, disk = Scripted(), Executor(), Disk()
    machine.outputs[ConnectionLost(1)] = output(1, LOGGED)
    machine.outputs[ConnectionLost(2)] = Output(immediate=(Answer(2, None),))
    loop = driven(machine, executor, store=disk)
    disk.turning.clear()
    loop.handle(ConnectionLost(1))
    loop.handle(ConnectionLost(2))
    assert executor.done == ["answer 2"]
    disk.turning.set()
    assert await loop.settled()


@pytest.mark.usefixtures("hasty")
async def test_when_a_save_fails_waiting_callers_are_refused_and_the_rest_follows_once_it_is_stored() -> None:
    machine, executor, disk = Scripted(), Executor(), Disk()
    disk.full = True
    ack = NodeRegisterAck(node_id="node-1")
    machine.outputs[ConnectionLost(1)] = output(1, LOGGED, Answer(1, None), Send(4, ack))
    loop = driven(machine, executor, store=disk)
    loop.handle(ConnectionLost(1))
    await until(lambda: machine.received[-1] == StoreFailed("full"), what="a store that fails")
    assert executor.done == ["answer 1: REGISTRY_BUSY", "send 4: REGISTRY_BUSY"]
    assert loop.store_problem == "full"
    assert not await loop.settled()
    disk.full = False
    await until(lambda: loop.store_problem is None, what="a store that answers again")
    assert await loop.settled()
    assert executor.done[2:] == ["logged"]
    assert disk.documents() == {"node-1": {"number": 1}}
    (recovered,) = [event for event in machine.received if isinstance(event, StoreRecovered)]
    assert 0 < recovered.outage_seconds < 5


@pytest.mark.usefixtures("hasty")
async def test_a_store_without_an_answer_in_time_has_failed_and_one_that_answers_late_has_recovered(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", logger="gpu_agent")
    machine, executor, disk = Scripted(), Executor(), Disk()
    machine.outputs[ConnectionLost(1)] = output(1, Answer(1, None), LOGGED)
    machine.outputs[ConnectionLost(2)] = Output(effects=(Answer(2, None),))
    loop = driven(machine, executor, store=disk)
    disk.turning.clear()
    loop.handle(ConnectionLost(1))
    await until(lambda: loop.store_problem, what="a store that has not answered")
    assert "the store has not answered for 0.05 s" in str(loop.store_problem)
    loop.handle(ConnectionLost(2))
    assert executor.done == ["answer 1: REGISTRY_BUSY", "answer 2: REGISTRY_BUSY"]
    disk.turning.set()
    await until(lambda: loop.store_problem is None, what="a store that answers again")
    assert await loop.settled()
    assert executor.done[2:] == ["logged"]
    kinds = [type(event) for event in machine.received[2:]]
    assert kinds == [ConnectionLost, Stored, StoreRecovered]
    messages = [one.getMessage() for one in caplog.records if one.name.endswith("registry")]
    assert [one for one in messages if one.startswith("store")] == ["store_failing", "store_recovered"]


@pytest.mark.usefixtures("hasty")
async def test_what_was_stored_although_the_save_failed_is_stored_again_and_events_are_not_doubled() -> None:
    machine, executor, disk = Scripted(), Executor(), Disk()
    disk.lies = True
    machine.outputs[ConnectionLost(1)] = output(1, LOGGED)
    loop = driven(machine, executor, store=disk)
    loop.handle(ConnectionLost(1))
    await until(lambda: loop.store_problem, what="a store that fails")
    disk.lies = False
    await until(lambda: loop.store_problem is None, what="a store that answers again")
    assert await loop.settled()
    assert executor.done == ["logged"]
    assert [one.event for one in disk.load().recent] == ["logged"]


@pytest.mark.usefixtures("hasty")
async def test_the_newest_document_of_a_key_is_stored_last() -> None:
    machine, executor, disk = Scripted(), Executor(), Disk()
    disk.full = True
    loop = driven(machine, executor, store=disk)
    for number in (1, 2, 3):
        machine.outputs[ConnectionLost(number)] = output(number)
        loop.handle(ConnectionLost(number))
    await until(lambda: loop.store_problem, what="a store that fails")
    disk.full = False
    await until(lambda: loop.store_problem is None, what="a store that answers again")
    assert disk.documents() == {"node-1": {"number": 3}}


@pytest.mark.usefixtures("hasty")
async def test_however_long_the_store_fails_what_waits_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_module, "MOST_WAITING", 20)
    machine, executor, disk = Scripted(), Executor(), Disk()
    disk.full = True
    loop = driven(machine, executor, store=disk)
    for number in range(1, 300):
        status = status_of(f"node-{number % 3}", NodeStatus.READY if number % 2 else NodeStatus.DEGRADED)
        change = output(
            number, status, LogEvent("health_check", level=LOGGED.level), key=f"node-{number % 3}"
        )
        machine.outputs[ConnectionLost(number)] = change
        loop.handle(ConnectionLost(number))
        if number == 1:
            await until(lambda: loop.store_problem, what="a store that fails")
        assert len(loop._queue) <= 22
    disk.full = False
    await until(lambda: loop.store_problem is None, what="a store that answers again")
    assert await loop.settled()
    assert disk.documents() == {
        "node-0": {"number": 297},
        "node-1": {"number": 298},
        "node-2": {"number": 299},
    }
    sent = [effect.node_id for effect in executor.executed if isinstance(effect, SendStatus)]
    assert len(sent) < 30
    assert set(sent[-3:]) == {"node-0", "node-1", "node-2"}
    assert machine.received[-2:] == [Stored(299), machine.received[-1]]


@pytest.mark.usefixtures("hasty")
async def test_what_waited_while_the_store_hung_is_no_second_failure_once_it_answers() -> None:
    machine, executor, disk = Scripted(), Executor(), Disk()
    for number in (1, 2):
        machine.outputs[ConnectionLost(number)] = output(number, LOGGED)
    loop = driven(machine, executor, store=disk)
    disk.turning.clear()
    loop.handle(ConnectionLost(1))
    await until(lambda: loop.store_problem, what="a store that has not answered")
    loop.handle(ConnectionLost(2))
    await asyncio.sleep(0.1)
    disk.turning.set()
    await until(lambda: executor.done == ["logged", "logged"], what="all that waited")
    assert [type(one) for one in machine.received].count(StoreFailed) == 1


@pytest.mark.usefixtures("hasty")
async def test_what_waits_keeps_its_order_however_much_waits_behind_a_commit_that_hangs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loop_module, "MOST_WAITING", 4)
    machine, executor, disk = Scripted(), Executor(), Disk()
    numbers = range(1, 12)
    for number in numbers:
        closing = CloseConnection(number, 1001, "")
        stored = output(number, closing, key=f"node-{number}")
        machine.outputs[ConnectionLost(number)] = stored if number % 2 else Output(effects=(closing,))
    loop = driven(machine, executor, store=disk)
    disk.full = True
    for number in numbers:
        loop.handle(ConnectionLost(number))
        if number == 3:
            await until(lambda: loop.store_problem, what="a store that fails")
            disk.turning.clear()
            disk.full = False
            await until(lambda: loop._in_commit == 2, what="a commit that holds what waits")
    disk.turning.set()
    await until(lambda: loop.store_problem is None, what="a store that answers again")
    assert await loop.settled()
    closed = [one.connection for one in executor.executed if isinstance(one, CloseConnection)]
    assert closed == list(numbers)


async def test_after_standing_still_the_store_has_time_to_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_module, "ANSWER_SECONDS", 0.05)
    monkeypatch.setattr(loop_module, "CATCH_UP_SECONDS", patience(5))
    jump = 0.0
    machine, executor, disk = Scripted(), Executor(), Disk()
    machine.outputs[ConnectionLost(1)] = output(1, Answer(1, None))
    loop = driven(machine, executor, store=disk, monotonic=lambda: time.monotonic() + jump)
    disk.turning.clear()
    loop.handle(ConnectionLost(1))
    await asyncio.sleep(0)
    jump = 60.0
    first_look = loop._overdue
    await until(lambda: loop._overdue is not first_look, what="a look at the oldest output")
    disk.turning.set()
    assert await loop.settled()
    assert executor.done == ["answer 1"]


async def test_many_answers_at_once_are_carried_out_in_slices() -> None:
    machine, executor, disk = Scripted(), Executor(), Disk()
    executor.work = lambda _: time.sleep(SLICE_SECONDS / 10)
    loop = driven(machine, executor, store=disk)
    disk.turning.clear()
    for number in range(1, 201):
        machine.outputs[ConnectionLost(number)] = output(number, Answer(number, None), key=f"node-{number}")
        loop.handle(ConnectionLost(number))
    disk.turning.set()
    longest, last = 0.0, (began := time.monotonic())
    while len(executor.done) < 200:
        await asyncio.sleep(0)
        longest, last = max(longest, time.monotonic() - last), time.monotonic()
    assert executor.done == [f"answer {number}" for number in range(1, 201)]
    assert longest < (last - began) / 2


async def test_when_an_effect_raises_the_effects_behind_it_are_still_carried_out() -> None:
    machine, executor, disk = Scripted(), Executor(), Disk()
    failures: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
    machine.outputs[ConnectionLost(1)] = output(1, LOGGED, Answer(1, None), key="a")
    machine.outputs[ConnectionLost(2)] = output(2, Answer(2, None), key="b")
    executor.work = fails_on("logged")
    loop = driven(machine, executor, store=disk)
    loop.handle(ConnectionLost(1))
    loop.handle(ConnectionLost(2))
    assert await loop.settled()
    assert executor.done == ["answer 1", "answer 2"]
    assert [type(failure["exception"]) for failure in failures] == [ZeroDivisionError]


async def test_when_an_effect_that_needs_no_store_raises_so_does_handle_and_the_rest_follows() -> None:
    machine, executor = Scripted(), Executor()
    machine.outputs[ConnectionLost(1)] = Output(effects=(Answer(1, None), Answer(2, None)))
    machine.outputs[ConnectionLost(2)] = Output(effects=(Answer(3, None),))
    executor.work = fails_on("answer 1")
    loop = driven(machine, executor)
    with pytest.raises(ZeroDivisionError):
        loop.handle(ConnectionLost(1))
    loop.handle(ConnectionLost(2))
    assert await loop.settled()
    assert executor.done == ["answer 2", "answer 3"]


async def test_when_an_effect_raises_after_a_commit_the_next_commit_still_begins() -> None:
    machine, executor, disk = Scripted(), Executor(), Disk()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: None)  # noqa: ARG005 - asyncio's signature
    machine.outputs[ConnectionLost(1)] = output(1, Answer(1, None), key="a")
    machine.outputs[ConnectionLost(2)] = output(2, Answer(2, None), key="b")
    machine.outputs[Stored(1)] = Output(effects=(Answer(3, None),))
    executor.work = fails_on("answer 1")
    loop = driven(machine, executor, store=disk)
    disk.turning.clear()
    loop.handle(ConnectionLost(1))
    await asyncio.sleep(0)
    loop.handle(ConnectionLost(2))
    disk.turning.set()
    assert await loop.settled()
    assert executor.done == ["answer 2", "answer 3"]


async def test_what_an_effect_leads_to_waits_its_turn() -> None:
    machine, executor = Scripted(), Executor()
    machine.outputs[ConnectionLost(1)] = Output(effects=(Answer(1, None), Answer(2, None)))
    machine.outputs[ConnectionLost(2)] = Output(effects=(Answer(3, None),))
    loop = driven(machine, executor)
    executor.work = lambda name: loop.handle(ConnectionLost(2)) if name == "answer 1" else None
    loop.handle(ConnectionLost(1))
    assert executor.done == ["answer 1", "answer 2", "answer 3"]


async def test_many_effects_let_others_have_their_turn_and_keep_their_order() -> None:
    machine, executor = Scripted(), Executor()
    machine.outputs[ConnectionLost(1)] = Output(effects=tuple(Answer(number, None) for number in range(200)))
    machine.outputs[ConnectionLost(2)] = Output(effects=(Answer(200, None),))
    executor.work = lambda _: time.sleep(SLICE_SECONDS / 10)
    loop = driven(machine, executor)
    loop.handle(ConnectionLost(1))
    assert len(executor.done) < 200
    loop.handle(ConnectionLost(2))
    assert await loop.settled()
    assert executor.done == [f"answer {number}" for number in range(201)]


async def test_a_stopped_loop_ignores_every_event() -> None:
    machine, executor = Scripted(), Executor()
    loop = driven(machine, executor, scan=0.02)
    loop.stop()
    loop.handle(ConnectionLost(1))
    await asyncio.sleep(0.1)  # five scan intervals
    assert (machine.received, machine.woken) == ([], [])


async def test_the_machine_is_woken_at_its_deadline() -> None:
    machine, executor = Scripted(), Executor()
    machine.deadline = time.monotonic() + 0.05
    machine.on_waking = Output(effects=(Answer(1, None),))
    wanted = machine.deadline
    driven(machine, executor)
    async with asyncio.timeout(patience(5)):
        while not executor.done:  # noqa: ASYNC110 - the loop under test has no event for it
            await asyncio.sleep(0.005)
    assert machine.woken[0] >= wanted - 0.001  # uvloop's clock counts milliseconds
    assert len(executor.lags) == 1


async def test_a_deadline_that_moves_nearer_is_kept() -> None:
    machine, executor = Scripted(), Executor()
    machine.outputs[ConnectionLost(1)] = Output(effects=(Answer(1, None),))
    loop = driven(machine, executor)
    machine.deadline = time.monotonic() + 0.05
    loop.handle(ConnectionLost(1))
    async with asyncio.timeout(patience(5)):
        while not machine.woken:  # noqa: ASYNC110 - the loop under test has no event for it
            await asyncio.sleep(0.005)


async def test_without_a_deadline_the_machine_is_looked_at_once_a_scan_interval() -> None:
    machine = Scripted()
    driven(machine, Executor(), scan=0.05)
    async with asyncio.timeout(patience(5)):
        while len(machine.woken) < 3:  # noqa: ASYNC110 - the loop under test has no event for it
            await asyncio.sleep(0.005)
    assert machine.woken[2] - machine.woken[0] >= 0.09


async def test_the_clock_goes_on_after_a_waking_that_breaks() -> None:
    machine, executor = Scripted(), Executor()
    machine.on_waking = Output(effects=(Answer(1, None),))
    failures: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
    thrice = asyncio.Event()

    def breaks(_: str) -> None:
        if len(machine.woken) == 3:
            thrice.set()
        raise RuntimeError("boom")

    executor.work = breaks
    loop = driven(machine, executor, scan=0.01)
    await asyncio.wait_for(thrice.wait(), patience(5))
    loop.stop()
    assert len(failures) >= 2


async def test_after_standing_still_what_waits_in_the_sockets_is_heard_before_anybody_is_judged() -> None:
    """A registry that was stopped for a minute must not time out the nodes that it did not read."""
    jump = 0.0
    machine, executor = Scripted(), Executor()
    waited = ConnectionLost(7)
    woken = asyncio.Event()
    heard_when_woken: list[list[Event]] = []

    def lagged(lag: float) -> None:
        if lag > FROZEN_SECONDS:
            asyncio.get_running_loop().call_soon(loop.handle, waited)
        if lag <= FROZEN_SECONDS and jump:
            heard_when_woken.append(list(machine.received))
            woken.set()

    loop = FleetLoop(
        machine,
        executor,
        Writer(Disk()),
        monotonic=lambda: time.monotonic() + jump,
        scan_interval_seconds=0.02,
        lagged=lagged,
    )
    loop.start()
    jump = 60.0
    await asyncio.wait_for(woken.wait(), patience(5))
    loop.stop()
    assert heard_when_woken[0] == [waited]


async def test_a_machine_that_is_always_late_is_still_woken() -> None:
    machine, executor = Scripted(), Executor()
    steps = itertools.count()
    loop = driven(machine, executor, scan=0.02, monotonic=lambda: time.monotonic() + 60.0 * next(steps))
    async with asyncio.timeout(patience(5)):
        while len(machine.woken) < 3:  # noqa: ASYNC110 - there is no event for a waking
            await asyncio.sleep(0.01)
    loop.stop()


async def test_a_machine_that_has_left_something_is_woken_again_at_once_after_others_had_a_turn() -> None:
    machine, executor = Scripted(), Executor()
    turns: list[int] = []

    class Large(Scripted):
        def wake(self, now: float) -> Output:
            super().wake(now)
            self.deadline = now if len(self.woken) < 50 else None
            asyncio.get_running_loop().call_soon(turns.append, len(self.woken))
            return NOTHING

    machine = Large()
    machine.deadline = time.monotonic()
    began = time.monotonic()
    driven(machine, executor)
    async with asyncio.timeout(patience(5)):
        while len(machine.woken) < 50:  # noqa: ASYNC110 - the loop under test has no event for it
            await asyncio.sleep(0)
    assert time.monotonic() - began < patience(0.5)
    assert turns[:49] == list(range(1, 50))


async def test_what_is_timed_is_the_machines_own_thinking() -> None:
    class Slow(Scripted):
        def handle(self, event: Event, now: float) -> Output:
            time.sleep(0.02)
            return super().handle(event, now)

    machine, executor = Slow(), Executor()
    machine.outputs[ConnectionLost(1)] = Output(effects=(LOGGED,))
    executor.work = lambda _: time.sleep(0.2)
    loop = driven(machine, executor)
    assert 0.02 <= loop.timed(ConnectionLost(1)) < 0.2
    await loop.settled()
    assert executor.done == ["logged"]
    loop.stop()
    assert loop.timed(ConnectionLost(1)) == 0.0
