from gpu_agent.registry.actions import Answer, Note, Refusal, Save
from gpu_agent.registry.credentials import FreshToken
from gpu_agent.registry.events import CordonAsked, RegistrationArrived
from gpu_agent.registry.step import Step
from tests.registry.fleets import Registry, answer, codes, declaration, figures, of, proof, statuses
from tests.registry.saving import Undone, saves, verdict


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
    assert of(Note, subject.sealed(step)) == [*first.notes, Note("decided", {"node_id": "node-1"})]
    assert of(Save, subject.sealed(again))


def test_what_is_told_again_is_told_before_what_a_round_has_decided_since() -> None:
    subject = saves(Undone())
    subject.sealed(verdict())
    subject.failed(1, "disk full", Step(1.0))
    round_ = verdict(2.0, "node-2")
    subject.retry(round_)
    assert [note.fields["node_id"] for note in of(Note, subject.sealed(round_))] == ["node-1", "node-2"]


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
    event = RegistrationArrived(
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
    refused = list(registry.fleet.handle(CordonAsked(7, "node-1", "fans"), registry.now))
    assert of(Save, refused) == []
    assert isinstance(answer(refused), Refusal)
    assert record.cordoned is None
