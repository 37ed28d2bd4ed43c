from gpu_agent.registry.actions import Answer, Change, Kept, Note, Refusal, Save, Send, TellStatus
from gpu_agent.registry.record import NodeRecord
from gpu_agent.registry.step import Step
from gpu_agent.wire.messages import NodeError
from tests.registry.fleets import Registry, answer, closed, notes, of, statuses
from tests.registry.saving import Undone, asked, node, saves, verdict
from tests.registry.slow_store import SlowRegistry


def test_one_save_comes_before_all_that_is_noted_or_told() -> None:
    actions = saves(Undone()).sealed(asked(7))
    assert [type(action) for action in actions] == [Save, Note, Answer]
    assert actions[0] == Save(1, (Change(Kept.NODE, "node-1", {"at": 0.0}),))


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
    step.keep_node(node())
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
        3, (Change(Kept.NODE, "node-1", {"at": 2.0}), Change(Kept.NODE, "node-2", {"at": 2.0}))
    )
    assert actions[1:] == [Note("decided", {"node_id": node_id}) for node_id in ("node-1", "node-2")]
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
    how_it_was = first.before[(Kept.NODE, "node-1")]
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
    assert list(again.keys) == [(Kept.NODE, "node-1")]


def test_of_a_node_that_never_came_to_be_nothing_is_told() -> None:
    subject = saves(Undone())
    first, moved = asked(7), verdict()
    first.before[(Kept.NODE, "node-1")] = None
    moved.note("node_status_changed", {"node_id": "node-1", "to": "degraded"})
    moved.note("node_status_changed", {"node_id": "node-2", "to": "degraded"})
    subject.sealed(first)
    subject.sealed(moved)
    subject.failed(1, "disk full", Step(1.0))
    subject.failed(2, "disk full", Step(1.0))
    again = Step(2.0)
    subject.retry(again)
    told = of(Note, subject.sealed(again))
    assert [one.fields["node_id"] for one in told if one.event == "node_status_changed"] == ["node-2"]


def test_what_merely_happened_beside_a_request_is_saved_again() -> None:
    undone = Undone()
    subject = saves(undone)
    step = asked(7)
    step.keep_claim("job-1")
    subject.sealed(step)
    subject.failed(1, "disk full", Step(1.0))
    again = Step(3.0)
    subject.retry(again)
    assert list(again.keys) == [(Kept.CLAIM, "job-1")]


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
    assert [one for one in of(TellStatus, registry.done[told:]) if one.connection == 1] == []
    registry.answer_all()
    ready = [one.periodic for one in of(TellStatus, registry.done[told:]) if one.status == "ready"]
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
    assert (Kept.CLAIM, "job-1") not in registry.kept
