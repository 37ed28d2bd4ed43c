from gpu_agent.registry.actions import Action, Kept, Note, Save, TellStatus
from gpu_agent.registry.step import Key, Step
from gpu_agent.registry.unkept import MOST_AT_ONCE, MOST_WORDS, UnkeptQueue
from gpu_agent.wire.codes import NodeStatus, ReasonCode
from tests.registry.fleets import Registry, closed, figures, of, statuses
from tests.registry.saving import Undone, fleet_of_unkept, saves, verdict


def key(number: int) -> Key:
    return Kept.NODE, f"node-{number}"


def status(connection: int, status: NodeStatus, *, periodic: bool = False) -> TellStatus:
    return TellStatus(
        connection=connection,
        node_id=f"node-{connection}",
        status=status,
        reason_code=ReasonCode.RECOVERED,
        reason="",
        since=0.0,
        periodic=periodic,
    )


def note(number: int) -> Note:
    return Note("node_status_changed", {"number": number})


def test_what_waits_comes_out_in_order_with_what_is_told_of_it() -> None:
    queue = UnkeptQueue()
    queue.add((key(1), key(2)), [note(1)])
    queue.add((key(1),), [note(2)])
    assert (len(queue), queue.holds(key(2)), queue.holds(key(3))) == (2, True, False)
    assert queue.take() == ([key(1), key(2)], [note(1), note(2)])
    assert (len(queue), queue.holds(key(1)), queue.take()) == (0, False, ([], []))


def test_so_much_comes_out_at_once_and_the_rest_waits() -> None:
    queue = UnkeptQueue()
    for number in range(MOST_AT_ONCE + 3):
        queue.add((key(number),), [])
    assert len(queue.take()[0]) == MOST_AT_ONCE
    assert queue.holds(key(MOST_AT_ONCE))
    assert queue.take()[0] == [key(MOST_AT_ONCE + n) for n in range(3)]


def test_what_waited_before_goes_before_what_waits_since() -> None:
    queue = UnkeptQueue()
    queue.add((key(1),), [])
    queue.add((key(2),), [], first=True)
    assert queue.take()[0] == [key(2), key(1)]


def test_only_the_newest_status_of_a_connection_is_told_and_no_periodic_one() -> None:
    queue = UnkeptQueue()
    old, new = status(1, NodeStatus.DEGRADED), status(1, NodeStatus.READY)
    other = status(2, NodeStatus.OFFLINE)
    queue.add((key(1),), [old, status(1, NodeStatus.DEGRADED, periodic=True)])
    queue.add((key(1), key(2)), [new, other])
    assert queue.take()[1] == [new, other]


def test_a_status_that_waited_before_is_no_news_where_a_later_one_waits() -> None:
    queue = UnkeptQueue()
    old, new = status(1, NodeStatus.DEGRADED), status(1, NodeStatus.READY)
    queue.add((key(1),), [old])
    keys, told = queue.take()
    queue.add((key(1),), [new])
    queue.add(tuple(keys), told, first=True)
    assert queue.take()[1] == [new]


def test_what_waits_is_bounded_however_often_a_thing_changes() -> None:
    queue = UnkeptQueue()
    for number in range(5 * MOST_WORDS):
        words: list[Action] = [note(number)] if number % 2 else []
        queue.add((key(number % 10),), words)
    assert len(queue) <= 2 * MOST_WORDS
    keys, told = queue.take()
    assert sorted(keys) == sorted(key(number) for number in range(10))
    assert told[-1] == note(5 * MOST_WORDS - 1)
    assert MOST_WORDS <= len(told) <= 2 * MOST_WORDS


def test_things_of_which_nothing_is_told_wait_once() -> None:
    queue = UnkeptQueue()
    for number in range(10_000):
        queue.add((key(number % 10),), [])
    assert len(queue) <= 2 * 10 + MOST_AT_ONCE + 1


def test_a_status_is_no_news_once_its_node_was_given_another_that_nobody_was_there_to_hear() -> None:
    queue = UnkeptQueue()
    queue.add((key(1),), [status(1, NodeStatus.READY)])
    moved = Note("node_status_changed", {"node_id": "node-1", "to": "offline"})
    queue.add((key(1),), [moved])
    assert queue.take()[1] == [moved]


def test_many_verdicts_are_saved_again_in_parts_each_once_the_one_before_is_kept() -> None:
    subject = fleet_of_unkept(2 * MOST_AT_ONCE + 1)
    assert not subject.goes_on
    saved = []
    for now in (2.0, 2.01, 2.02):
        assert (subject.deadline or 0.0) <= now
        step = Step(now)
        subject.retry(step)
        (save, *_) = subject.sealed(step)
        assert isinstance(save, Save)
        saved.append(len(save.changes))
        subject.kept(save.save)
    assert saved == [MOST_AT_ONCE, MOST_AT_ONCE, 1]
    assert (subject.goes_on, subject.deadline) == (False, None)


def test_no_part_is_tried_while_one_is_on_its_way() -> None:
    subject = fleet_of_unkept(2 * MOST_AT_ONCE)
    subject.retry(step := Step(2.0))
    subject.sealed(step)
    assert subject.deadline is None


def test_while_the_store_fails_one_part_is_tried_at_a_time_the_same_one_first() -> None:
    subject = fleet_of_unkept(2 * MOST_AT_ONCE)
    tried = []
    for now in (2.0, 3.0):
        assert subject.deadline == now
        step = Step(now)
        subject.retry(step)
        tried.append(list(step.keys))
        (save, *_) = subject.sealed(step)
        assert isinstance(save, Save)
        subject.failed(save.save, "disk full", Step(now))
    assert tried[0] == tried[1] == [(Kept.NODE, f"node-{n}") for n in range(1, MOST_AT_ONCE + 1)]


def test_nothing_is_tried_again_before_its_time() -> None:
    subject = fleet_of_unkept(1)
    step = Step(1.5)
    subject.retry(step)
    assert (list(step.keys), subject.deadline) == ([], 2.0)


def test_what_is_out_of_date_before_it_could_be_told_is_not_told() -> None:
    registry = Registry()
    registry.ready()
    registry.ready(2)
    registry.store_fails = True
    registry.beats(120, every=10.0, gpus=figures(health="lost"))
    registry.beats(3, gpus=figures())
    registry.store_fails = False
    told = registry.pass_time(2.0)
    assert statuses(told, 1) == ["ready"]
    assert statuses(told, 2) == ["offline"]
    assert closed(told) == [(2, 1001)]


def test_a_store_that_keeps_nothing_does_not_fill_the_memory_with_notes() -> None:
    subject = saves(Undone())
    count = MOST_WORDS + 50
    for number in range(1, count):
        subject.sealed(verdict(node_id=f"node-{number % 10}"))
        subject.failed(number, "disk full", Step(1.0))
    again = Step(2.0)
    subject.retry(again)
    waiting = of(Note, subject.sealed(again))
    assert MOST_WORDS <= len(waiting) <= 2 * MOST_WORDS
    assert waiting[-1].fields == {"node_id": f"node-{(count - 1) % 10}"}
