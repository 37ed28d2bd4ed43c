""""""

from gpu_agent.registry.actions import (
    Action,
    Answer,
    Change,
    DocumentKind,
    LogEvent,
    Refusal,
    Save,
    Send,
    SendStatus,
)
from gpu_agent.registry.credentials import FreshToken
from gpu_agent.registry.events import CordonRequested, RegistrationReceived
from gpu_agent.registry.job import Claim
from gpu_agent.registry.node import NodeRecord
from gpu_agent.registry.saves import MOST_AT_ONCE, MOST_WORDS, OpenSave, UnkeptQueue
from gpu_agent.registry.step import Key, Step
from gpu_agent.wire.codes import NodeStatus, ReasonCode
from gpu_agent.wire.messages import NodeError
from tests.registry.dispatch.nodes import node as nodes_node
from tests.registry.harness import (
    Registry,
    answer,
    closed,
    codes,
    declaration,
    figures,
    notes,
    of,
    proof,
    statuses,
)
from tests.registry.saving import Undone, asked, fleet_of_unkept, node, saves, verdict
from tests.registry.slow_store import SlowRegistry


def test_one_save_comes_before_all_that_is_noted_or_told() -> None:
    actions = saves(Undone()).sealed(asked(7))
    assert [type(action) for action in actions] == [Save, LogEvent, Answer]
    assert actions[0] == Save(1, (Change(DocumentKind.NODE, "node-1", {"at": 0.0}),))


def test_a_step_without_anything_to_keep_saves_nothing() -> None:
    step = Step(0.0)
    step.answer(1)
    assert saves(Undone()).sealed(step) == [Answer(1, None)]


def test_what_was_asked_is_undone_and_refused_when_its_save_fails() -> None:
    undone = Undone()
    subject = saves(undone)
    subject.sealed(asked(7))
    step = Step(1.0)
    subject.failed(1, "disk full", step)
    assert [key for key, _ in undone.keys] == ["node-1"]
    (answer,) = step.told
    assert isinstance(answer, Answer)
    assert isinstance(answer.result, Refusal)
    assert (answer.ref, answer.result.code) == (7, "REGISTRY_BUSY")
    assert answer.result.message.endswith("ask again in a moment; disk full"), "an operator can make room"
    assert subject.deadline is None


def test_a_node_is_not_told_what_is_wrong_with_our_disk() -> None:
    subject, step = saves(Undone()), Step(0.0)
    busy = Send(1, NodeError(code="REGISTRY_BUSY", message="register again in a moment"))
    step.change_node(node())
    step.refusals.append(busy)
    subject.sealed(step)
    failed = Step(1.0)
    subject.failed(1, "/var/lib/gpu-registry/registry.db: disk full", failed)
    assert failed.told == [busy]


def test_a_verdict_stands_and_is_saved_again_when_its_save_fails() -> None:
    undone = Undone()
    subject = saves(undone)
    subject.sealed(verdict())
    subject.sealed(verdict(node_id="node-2"))
    subject.failed(1, "disk full", Step(1.0))
    subject.failed(2, "disk full", Step(1.5))
    assert undone.keys == []
    assert subject.deadline == 2.0
    again = Step(2.0)
    subject.retry(again)
    actions = subject.sealed(again)
    assert actions[0] == Save(
        3,
        (Change(DocumentKind.NODE, "node-1", {"at": 2.0}), Change(DocumentKind.NODE, "node-2", {"at": 2.0})),
    )
    assert actions[1:] == [LogEvent("decided", {"node_id": node_id}) for node_id in ("node-1", "node-2")]
    assert subject.deadline is None


def test_once_kept_nothing_can_fail_any_more() -> None:
    undone = Undone()
    subject = saves(undone)
    subject.sealed(asked(7))
    subject.sealed(asked(8))
    subject.kept(1)
    subject.failed(1, "late", Step(1.0))
    assert undone.keys == []
    subject.failed(2, "disk full", Step(1.0))
    assert len(undone.keys) == 1


def test_when_an_earlier_save_fails_a_later_one_of_the_same_thing_leads_from_where_it_began() -> None:
    undone = Undone()
    subject = saves(undone)
    first, second = asked(7), asked(8)
    how_it_was = first.before[(DocumentKind.NODE, "node-1")]
    assert isinstance(how_it_was, NodeRecord)
    how_it_was.cordoned = "as it was"
    subject.sealed(first)
    subject.sealed(second)
    subject.failed(1, "disk full", Step(1.0))
    subject.failed(2, "disk full", Step(1.0))
    assert undone.keys == [("node-1", how_it_was), ("node-1", how_it_was)]


def test_what_a_later_save_holds_of_one_that_failed_is_saved_again() -> None:
    subject = saves(Undone())
    subject.sealed(asked(7))
    subject.sealed(verdict())
    subject.failed(1, "disk full", Step(1.0))
    subject.kept(2)
    again = Step(2.0)
    subject.retry(again)
    assert list(again.keys) == [(DocumentKind.NODE, "node-1")]


def test_of_a_node_that_never_came_to_be_nothing_is_told() -> None:
    subject = saves(Undone())
    first, moved = asked(7), verdict()
    first.before[(DocumentKind.NODE, "node-1")] = None
    moved.note("node_status_changed", {"node_id": "node-1", "to": "degraded"})
    moved.note("node_status_changed", {"node_id": "node-2", "to": "degraded"})
    subject.sealed(first)
    subject.sealed(moved)
    subject.failed(1, "disk full", Step(1.0))
    subject.failed(2, "disk full", Step(1.0))
    again = Step(2.0)
    subject.retry(again)
    told = of(LogEvent, subject.sealed(again))
    assert [one.fields["node_id"] for one in told if one.event == "node_status_changed"] == ["node-2"]


def test_what_merely_happened_beside_a_request_is_saved_again() -> None:
    undone = Undone()
    subject = saves(undone)
    step = asked(7)
    step.change_claim("job-1")
    subject.sealed(step)
    subject.failed(1, "disk full", Step(1.0))
    again = Step(3.0)
    subject.retry(again)
    assert list(again.keys) == [(DocumentKind.CLAIM, "job-1")]


def test_a_timeout_that_could_not_be_saved_is_told_once_the_store_keeps_it() -> None:
    registry = Registry()
    record = registry.ready()
    registry.store_fails = True
    unsaved = registry.pass_time(50.0)
    assert (record.status, closed(unsaved)) == ("offline", [])
    assert "offline" not in statuses(unsaved)
    registry.store_fails = False
    saved = registry.pass_time(2.0)
    assert statuses(saved) == ["offline"]
    assert closed(saved) == [(1, 1001)]


def test_a_claim_that_could_not_be_saved_is_refused_and_its_place_free() -> None:
    registry = Registry()
    registry.ready(max_concurrent_jobs=1)
    registry.store_fails = True
    refused = registry.claim("job-1")
    assert isinstance(refused, Refusal)
    assert refused.code == "REGISTRY_BUSY"
    registry.store_fails = False
    assert registry.claim("job-2").node_id == "node-1"


def test_a_drain_that_could_not_be_saved_is_refused_and_never_began() -> None:
    registry = Registry()
    record = registry.ready()
    registry.store_fails = True
    refused = registry.drain()
    assert isinstance(answer(refused), Refusal)
    assert statuses(refused) == []
    assert (record.status, record.drain) == ("ready", None)
    registry.store_fails = False
    assert registry.claim("job-1").node_id == "node-1"


def test_a_verdict_is_noted_once_it_is_kept() -> None:
    """What is in the log and a node's history is told to operators (§4: save before telling)."""
    subject = saves(Undone())
    step = verdict()
    step.note("node_status_changed", {"to": "offline"})
    sealed = subject.sealed(step)
    told = [action for action in sealed if not isinstance(action, Save)]
    subject.failed(1, "disk full", Step(1.0))
    again = Step(2.0)
    subject.retry(again)
    retold = subject.sealed(again)
    assert isinstance(retold[0], Save)
    assert [action for action in retold if not isinstance(action, Save)] == told


def test_no_status_is_told_again_while_its_save_is_open() -> None:
    registry = SlowRegistry(node_status_interval_seconds=5.0)
    registry.register()
    registry.answer_all()
    for _ in range(3):
        registry.pass_time(2.0)
        registry.beat()
    told = len(registry.done)
    registry.pass_time(6.0)
    assert [one for one in of(SendStatus, registry.done[told:]) if one.connection == 1] == []
    registry.answer_all()
    ready = [one.periodic for one in of(SendStatus, registry.done[told:]) if one.status == "ready"]
    assert ready[:1] == [False]


def test_a_claim_that_ended_beside_a_request_that_could_not_be_kept_stays_ended_and_is_noted() -> None:
    registry = Registry(claim_ttl_seconds=10.0)
    record = registry.ready()
    registry.claim("job-1")
    registry.pass_time(9.0)
    registry.store_fails = True
    registry.now += 2.0
    assert isinstance(registry.claim("job-1"), Refusal)
    assert record.claims == {}
    registry.store_fails = False
    assert [note.fields["job_id"] for note in notes(registry.pass_time(2.0), "claim_expired")] == ["job-1"]
    assert (DocumentKind.CLAIM, "job-1") not in registry.kept


def test_nobody_is_told_a_status_before_the_verdict_that_waits_is_kept() -> None:
    registry = Registry(node_status_interval_seconds=5.0)
    registry.ready()
    registry.store_fails = True
    registry.beat(gpus=figures(health="lost"))
    assert registry.node().status == "degraded"
    assert statuses(registry.beats(10, every=1.0, gpus=figures(health="lost"))) == []
    registry.store_fails = False
    assert statuses(registry.pass_time(2.0))[0] == "degraded"


def test_a_verdict_that_follows_upon_one_that_waits_waits_behind_it() -> None:
    subject = saves(Undone())
    first, second = verdict(), verdict()
    second.answer(9)
    subject.sealed(first)
    subject.failed(1, "disk full", Step(1.0))
    (told,) = subject.sealed(second)
    assert isinstance(told, Answer)
    assert isinstance(told.result, Refusal)
    assert told.result.code == "REGISTRY_BUSY"
    last = verdict()
    last.note("last", {})
    again = last
    subject.retry(step := Step(2.0))
    assert of(LogEvent, subject.sealed(step)) == [*first.notes, LogEvent("decided", {"node_id": "node-1"})]
    assert of(Save, subject.sealed(again))


def test_what_is_told_again_is_told_before_what_a_round_has_decided_since() -> None:
    subject = saves(Undone())
    subject.sealed(verdict())
    subject.failed(1, "disk full", Step(1.0))
    round_ = verdict(2.0, "node-2")
    subject.retry(round_)
    assert [note.fields["node_id"] for note in of(LogEvent, subject.sealed(round_))] == ["node-1", "node-2"]


def test_who_asked_does_not_wait_for_the_store_to_keep_a_verdict() -> None:
    subject = saves(Undone())
    step = verdict()
    step.refuse(9, "CLAIM_NOT_FOUND", "no claim is held")
    subject.sealed(step)
    after = Step(1.0)
    subject.failed(1, "disk full", after)
    (told,) = after.told
    assert isinstance(told, Answer)
    assert isinstance(told.result, Refusal)
    assert (told.ref, told.result.code) == (9, "REGISTRY_BUSY")


def test_a_registration_on_top_of_a_verdict_that_waits_is_refused_at_once_and_changes_nothing() -> None:
    registry = Registry()
    record = registry.ready()
    registry.store_fails = True
    registry.pass_time(46.0)
    assert record.status == "offline"
    event = RegistrationReceived(
        2, declaration(), "unused", proof("node-1"), fresh_token=FreshToken("new", "secret", "digest new")
    )
    refused = list(registry.fleet.handle(event, registry.now))
    assert of(Save, refused) == []
    assert codes(refused, 2) == ["REGISTRY_BUSY"]
    assert (record.status, record.epoch, record.connection) == ("offline", 1, None)
    assert registry.fleet.credential("digest of node-1", registry.now) == proof("node-1")
    registry.store_fails = False
    registry.pass_time(2.0)
    registry.do(event)
    assert record.status == "registering"


def test_a_wish_on_top_of_a_verdict_that_waits_is_refused_at_once() -> None:
    registry = Registry()
    record = registry.ready()
    registry.store_fails = True
    registry.pass_time(46.0)
    refused = list(registry.fleet.handle(CordonRequested(7, "node-1", "fans"), registry.now))
    assert of(Save, refused) == []
    assert isinstance(answer(refused), Refusal)
    assert record.cordoned is None


NODE, CLAIM = (DocumentKind.NODE, "node-A"), (DocumentKind.CLAIM, "job-1")


def claim(expires_at: float) -> Claim:
    return Claim(
        job_id="job-1",
        node_id="node-A",
        gpu_uuids=(),
        endpoint=None,
        granted_at=0.0,
        expires_at=expires_at,
    )


def test_it_lets_go_of_what_was_there_before_it_and_not_after() -> None:
    save = OpenSave(
        (NODE,), before={NODE: nodes_node(), CLAIM: claim(1.0)}, after={NODE: None, CLAIM: claim(2.0)}
    )
    assert save.lets_go(NODE)
    assert not save.lets_go(CLAIM)
    assert not save.lets_go((DocumentKind.TOKEN, "t"))


def test_what_is_entrusted_ends_with_it() -> None:
    save, note = OpenSave((NODE,)), LogEvent("claim_lost", {})
    save.entrust(CLAIM, claim(1.0), note)
    assert save.lets_go(CLAIM)
    assert save.entrusted == {CLAIM: note}


def test_an_earlier_change_that_never_was_is_taken_out_of_both_ends() -> None:
    save = OpenSave((CLAIM,), before={CLAIM: claim(2.0)}, after={CLAIM: claim(3.0)})
    save.take_out(CLAIM, claim(1.0), claim(2.0))
    assert save.before[CLAIM] == claim(1.0)
    assert save.after[CLAIM] == claim(3.0)


def test_a_node_that_never_was_is_void() -> None:
    save = OpenSave((NODE,))
    save.take_out(NODE, None, nodes_node())
    assert save.void == {"node-A"}


def test_a_save_without_a_node_on_both_ends_has_moved_none() -> None:
    assert OpenSave((NODE,), before={NODE: None}, after={NODE: nodes_node()}).moves_of(NODE) == []


def key(number: int) -> Key:
    return DocumentKind.NODE, f"node-{number}"


def status(connection: int, status: NodeStatus, *, periodic: bool = False) -> SendStatus:
    return SendStatus(
        connection=connection,
        node_id=f"node-{connection}",
        status=status,
        reason_code=ReasonCode.RECOVERED,
        reason="",
        since=0.0,
        periodic=periodic,
    )


def note(number: int) -> LogEvent:
    return LogEvent("node_status_changed", {"number": number})


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
    moved = LogEvent("node_status_changed", {"node_id": "node-1", "to": "offline"})
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
    assert tried[0] == tried[1] == [(DocumentKind.NODE, f"node-{n}") for n in range(1, MOST_AT_ONCE + 1)]


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
    waiting = of(LogEvent, subject.sealed(again))
    assert MOST_WORDS <= len(waiting) <= 2 * MOST_WORDS
    assert waiting[-1].fields == {"node_id": f"node-{(count - 1) % 10}"}
