"""When a receiver of alarms gets which events: at least once, in order, grouped, quiet at night."""

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import assert_never

import pytest

from gpu_agent.registry.alarms import (
    FIRST_RETRY_SECONDS,
    GATHER_SECONDS,
    MOST_RETRY_AFTER_SECONDS,
    MOST_RETRY_SECONDS,
    MOST_WAITING,
    MOST_WAITING_BYTES,
    STORE_EVERY,
    AlarmReceiver,
    EventsRead,
    MessageDelivered,
    MessageFailed,
    QuietHoursChanged,
    ReceiverAction,
    ReceiverState,
    SendMessage,
    StorePosition,
    TrialDelivered,
    missed_before,
)
from gpu_agent.wire.api import RegistryEvent


def event(number: int, node_id: str = "n") -> RegistryEvent:
    return RegistryEvent(float(number), "claim_lost", node_id, {}, number)


def read(*numbers: int, through: int | None = None, missed: int = 0) -> EventsRead:
    return EventsRead(tuple(map(event, numbers)), through or numbers[-1], missed)


def receiver(position: int = 0, *, group_seconds: float = 30.0) -> AlarmReceiver:
    return AlarmReceiver(position, group_seconds=group_seconds, chance=lambda: 1.0)


def sent(actions: Sequence[ReceiverAction]) -> list[int]:
    """The ids in the one message among these actions."""
    (message,) = (one for one in actions if isinstance(one, SendMessage))
    return [one.id or 0 for one in message.events]


def test_what_follows_from_one_cause_is_one_message() -> None:
    ops = receiver()
    assert ops.handle(read(1), 100.0) == ()
    ops.handle(read(2, 3), 101.0)
    assert ops.deadline == 100.0 + GATHER_SECONDS
    assert sent(ops.wake(102.0)) == [1, 2, 3]
    assert ops.handle(MessageDelivered(), 103.0) == (StorePosition(3),)


def test_a_storm_is_at_most_one_message_in_each_interval() -> None:
    ops, now = receiver(group_seconds=30), 0.0
    began: list[float] = []
    for number in range(1, 301):
        now = number * 1.0
        ops.handle(read(number), now)
        if ops.wake(now):
            began.append(now)
            ops.handle(MessageDelivered(), now)
    assert len(began) == 10
    assert all(after - before >= 30 for before, after in itertools.pairwise(began))


def test_without_grouping_each_event_is_a_message_of_its_own_at_once() -> None:
    ops = receiver(group_seconds=0)
    ops.handle(read(1, 2, 3, missed=4), 5.0)
    messages = []
    while ops.deadline is not None:
        (message,) = ops.wake(5.0)
        assert isinstance(message, SendMessage)
        messages.append((message.missed, [one.id for one in message.events], message.through))
        assert ops.handle(MessageDelivered(), 5.0) == (StorePosition(message.through),)
    assert messages == [(4, [], 0), (0, [1], 1), (0, [2], 2), (0, [3], 3)]


def test_a_message_that_fails_is_sent_again_with_what_happened_meanwhile() -> None:
    ops = receiver()
    ops.handle(read(1), 0.0)
    ops.wake(2.0)
    ops.handle(read(2), 3.0)
    assert ops.handle(MessageFailed(), 4.0) == ()
    assert (ops.waiting, ops.failures, ops.deadline) == (2, 1, 4.0 + FIRST_RETRY_SECONDS)
    assert sent(ops.wake(9.0)) == [1, 2]
    assert ops.handle(MessageDelivered(), 9.5) == (StorePosition(2),)
    assert (ops.waiting, ops.failures, ops.deadline) == (0, 0, None)


def test_a_test_message_that_is_taken_ends_the_pause() -> None:
    ops = receiver()
    ops.handle(read(1), 0.0)
    assert ops.handle(TrialDelivered(), 0.5) == ()
    assert ops.deadline == GATHER_SECONDS
    ops.wake(2.0)
    ops.handle(MessageFailed(lasting=True, retry_after_seconds=900), 3.0)
    ops.handle(TrialDelivered(), 4.0)
    assert sent(ops.wake(4.0)) == [1]


def test_pauses_double_up_to_five_minutes() -> None:
    ops, now, pauses = receiver(), 0.0, []
    ops.handle(read(1), now)
    for _ in range(9):
        now = ops.deadline or 0.0
        ops.wake(now)
        ops.handle(MessageFailed(), now)
        pauses.append((ops.deadline or 0.0) - now)
    assert pauses == [5, 10, 20, 40, 80, 160, 300, 300, 300]


def test_the_pauses_of_several_receivers_drift_apart() -> None:
    ops = AlarmReceiver(0, group_seconds=30, chance=lambda: 0.0)
    ops.handle(read(1), 0.0)
    ops.wake(2.0)
    ops.handle(MessageFailed(), 2.0)
    assert ops.deadline == 2.0 + FIRST_RETRY_SECONDS / 2


@pytest.mark.parametrize(
    ("failed", "pause"),
    [
        (MessageFailed(retry_after_seconds=60), 60),
        (MessageFailed(retry_after_seconds=1e9), MOST_RETRY_AFTER_SECONDS),
        (MessageFailed(retry_after_seconds=-1), FIRST_RETRY_SECONDS),
        (MessageFailed(lasting=True), MOST_RETRY_SECONDS),
    ],
)
def test_a_receiver_may_ask_for_a_longer_pause(failed: MessageFailed, pause: float) -> None:
    ops = receiver()
    ops.handle(read(1), 0.0)
    ops.wake(2.0)
    ops.handle(failed, 2.0)
    assert ops.deadline == 2.0 + pause


def test_what_happens_in_quiet_hours_is_one_message_afterwards() -> None:
    ops = receiver()
    ops.handle(QuietHoursChanged(quiet=True), 0.0)
    for number in range(1, 6):
        ops.handle(read(number), number * 100.0)
        assert ops.wake(number * 100.0 + 50) == ()
    assert ops.deadline is None
    ops.handle(QuietHoursChanged(quiet=False), 1000.0)
    assert sent(ops.wake(1000.0)) == [1, 2, 3, 4, 5]


def test_a_failed_message_is_not_sent_again_in_quiet_hours() -> None:
    ops = receiver()
    ops.handle(read(1), 0.0)
    ops.wake(2.0)
    ops.handle(QuietHoursChanged(quiet=True), 3.0)
    ops.handle(MessageFailed(), 4.0)
    assert ops.wake(1e6) == ()
    ops.handle(QuietHoursChanged(quiet=False), 1e6)
    assert sent(ops.wake(1e6)) == [1]


def test_more_than_may_wait_is_counted() -> None:
    ops = receiver()
    ops.handle(QuietHoursChanged(quiet=True), 0.0)
    ops.handle(read(*range(1, MOST_WAITING + 11), missed=5), 1.0)
    ops.handle(QuietHoursChanged(quiet=False), 2.0)
    (message,) = ops.wake(100.0)
    assert isinstance(message, SendMessage)
    assert (message.missed, message.events[0].id, len(message.events)) == (15, 11, MOST_WAITING)


def test_events_that_take_more_memory_than_may_wait_are_counted_whether_they_come_or_come_back() -> None:
    ops, size = receiver(), MOST_WAITING_BYTES // 8
    long = [RegistryEvent(1.0, "claim_lost", "n", {"reason": "x" * size}, number) for number in range(1, 21)]
    ops.handle(EventsRead(tuple(long[:10]), 10), 1.0)
    (message,) = ops.wake(100.0)
    assert isinstance(message, SendMessage)
    assert (message.missed, [one.id for one in message.events]) == (3, [4, 5, 6, 7, 8, 9, 10])
    ops.handle(EventsRead(tuple(long[10:]), 20), 101.0)
    ops.handle(MessageFailed(), 102.0)
    (message,) = ops.wake(1000.0)
    assert isinstance(message, SendMessage)
    assert (message.missed, [one.id for one in message.events]) == (13, [14, 15, 16, 17, 18, 19, 20])
    ops.handle(MessageDelivered(), 1001.0)
    huge = RegistryEvent(1.0, "claim_lost", "n", {"reason": "x" * 2 * MOST_WAITING_BYTES}, 21)
    ops.handle(EventsRead((huge,), 21), 1002.0)
    assert ops.wake(2000.0) == (SendMessage((huge,), 0, 21),)


def test_events_that_can_only_be_counted_are_a_message_too() -> None:
    ops = receiver()
    ops.handle(EventsRead((), 20, missed=20), 0.0)
    assert ops.wake(2.0) == (SendMessage((), 20, 20),)
    assert ops.handle(MessageDelivered(), 3.0) == (StorePosition(20),)


def test_the_position_of_a_receiver_that_wants_nothing_is_stored_before_it_leaves_the_log() -> None:
    ops, actions = receiver(), list[ReceiverAction]()
    for through in range(100, 2_600, 100):
        actions += ops.handle(EventsRead((), through), 0.0)
    assert actions == [StorePosition(STORE_EVERY), StorePosition(2 * STORE_EVERY)]


def test_waking_early_does_nothing_and_what_cannot_happen_raises() -> None:
    ops = receiver(10)
    assert ops.wake(1e9) == ()
    for impossible in (MessageDelivered(), MessageFailed()):
        with pytest.raises(ValueError, match="no message is on its way"):
            ops.handle(impossible, 0.0)
    with pytest.raises(ValueError, match="was read after"):
        ops.handle(read(5), 0.0)
    assert (ops.state, ops.position) == (ReceiverState.IDLE, 10)


def test_ids_that_the_log_left_out_are_counted() -> None:
    assert missed_before(4, [event(5), event(6)]) == 0
    assert missed_before(4, [event(8), event(9), event(12)]) == 5
    assert missed_before(4, []) == 0


MOST_IN_LOG = 1500


@dataclass
class World:
    """A log, a receiver that fails at random, and a registry that is killed at random."""

    chance: random.Random
    group_seconds: float
    wanted_share: float
    now: float = 0.0
    stored: int = 0
    newest: int = 0
    got: list[int] = field(default_factory=list)
    """Ids, as the receiver got them; also from messages whose answer was lost."""
    missed: int = 0
    began: list[float] = field(default_factory=list)
    wanted: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.ops = self._start()

    def _start(self) -> AlarmReceiver:
        return AlarmReceiver(self.stored, group_seconds=self.group_seconds, chance=self.chance.random)

    def step(self, *, may_fail: bool = True, may_happen: bool = True) -> None:
        self.now += self.chance.choice((0.1, 1.0, 10.0))
        if may_happen:
            for _ in range(self.chance.choice((0, 0, 1, 3, 40))):
                self.newest += 1
                if self.chance.random() < self.wanted_share:
                    self.wanted.add(self.newest)
            quiet = self.chance.random() < 0.1
            self.do(self.ops.handle(QuietHoursChanged(quiet), self.now), may_fail=may_fail)
            if self.chance.random() < 0.05:
                self.do(self.ops.handle(TrialDelivered(), self.now), may_fail=may_fail)
        else:
            self.ops.handle(QuietHoursChanged(quiet=False), self.now)
        self.read()
        self.do(self.ops.wake(self.now), may_fail=may_fail)
        if may_fail and self.chance.random() < 0.05:
            self.ops = self._start()  # kill -9

    def read(self) -> None:
        before = self.ops.read_through
        oldest = max(before + 1, self.newest - MOST_IN_LOG + 1)
        if self.newest > before:
            wanted = tuple(event(one) for one in range(oldest, self.newest + 1) if one in self.wanted)
            read_ = EventsRead(wanted, self.newest, oldest - before - 1)
            self.do(self.ops.handle(read_, self.now), may_fail=True)

    def do(self, actions: Sequence[ReceiverAction], *, may_fail: bool) -> None:
        for action in actions:
            match action:
                case StorePosition(position):
                    assert position >= self.stored
                    self.stored = position
                case SendMessage():
                    self.began.append(self.now)
                    self.send(action, may_fail=may_fail)
                case _ as unreachable:
                    assert_never(unreachable)

    def send(self, message: SendMessage, *, may_fail: bool) -> None:
        fate = self.chance.choice(("taken", "refused", "answer lost", "killed")) if may_fail else "taken"
        if fate != "refused":
            ids = [one.id or 0 for one in message.events]
            assert ids == sorted(ids)
            self.got += ids
            self.missed += message.missed
        match fate:
            case "taken":
                self.do(self.ops.handle(MessageDelivered(), self.now), may_fail=may_fail)
            case "killed":
                self.ops = self._start()
            case _:
                self.do(self.ops.handle(MessageFailed(), self.now), may_fail=may_fail)


@pytest.mark.parametrize("seed", range(60))
def test_each_wanted_event_arrives_at_least_once_and_in_order_whatever_fails(seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311 - a test repeats its seeds
    world = World(chance, chance.choice((0.0, 5.0, 30.0)), chance.choice((0.02, 0.5)))
    for _ in range(300):
        world.step()
    for _ in range(20_000):
        world.step(may_fail=False, may_happen=False)
        if world.ops.deadline is None and world.ops.state is ReceiverState.IDLE:
            break
    lost = world.wanted - set(world.got)
    assert not lost or world.missed >= len(lost)
    first_times = list(dict.fromkeys(world.got))
    assert first_times == sorted(first_times)


@pytest.mark.parametrize("seed", range(20))
def test_whatever_happens_no_interval_has_two_messages_that_are_taken(seed: int) -> None:
    world = World(random.Random(seed), 30.0, 0.3)  # noqa: S311 - as above
    for _ in range(500):
        world.now += world.chance.random() * 5
        world.newest += world.chance.choice((0, 1, 2))
        world.wanted |= {world.newest}
        world.read()
        world.do(world.ops.wake(world.now), may_fail=False)
    assert all(b - a >= 30 for a, b in itertools.pairwise(world.began))
