from gpu_agent.registry.actions import Action, Answer, Change, Kept, Level, Note, Save
from gpu_agent.registry.documents import Restored
from gpu_agent.server.chronicle import Chronicle
from gpu_agent.server.clerk import DOCUMENT, WRITTEN_AT, Clerk, Open, Publish, restored, unkept
from gpu_agent.server.clock import Clock
from gpu_agent.store.base import Batch, RegistryEvent

CLOCK = Clock(monotonic=lambda: 100.0, wall=lambda: 1_000_000.0)


def clerk() -> Clerk:
    return Clerk(Chronicle(), CLOCK)


def test_a_save_and_the_events_of_its_list_are_kept_together_each_document_with_its_time() -> None:
    changes = (Change(Kept.NODE, "node-1", {"a": 1}), Change(Kept.CLAIM, "job-1", None))
    dated = [Change(Kept.NODE, "node-1", {WRITTEN_AT: 1_000_000.0, DOCUMENT: {"a": 1}}), changes[1]]
    event = RegistryEvent(1_000_000.0, "job_assigned", "node-1", {"job_id": "job-1"}, 1)
    note = Note("job_assigned", {"job_id": "job-1", "node_id": "node-1"})
    ready = clerk().make_ready([Save(7, changes), note, Answer(1, None)])
    assert (ready.save, ready.batch) == (7, Batch(dated, [event]))
    assert ready.doings == [Open(dated), Publish(event, Level.INFO), Answer(1, None)]


def test_a_list_that_only_tells_keeps_nothing() -> None:
    actions: list[Action] = [
        Note("health_check", {}, Level.DEBUG),
        Note("dispatch_failed", {}),
        Answer(1, None),
    ]
    ready = clerk().make_ready(actions)
    assert (ready.batch, ready.save, ready.doings) == (None, None, actions)


def test_events_without_a_save_are_kept_too_and_numbers_grow() -> None:
    subject = clerk()
    first = subject.make_ready([Note("one"), Note("two")]).batch
    second = subject.make_ready([Note("three")]).batch
    assert first is not None
    assert second is not None
    assert [one.id for one in (*first.events, *second.events)] == [1, 2, 3]


def test_what_could_not_be_kept_is_told_without_a_number() -> None:
    told = unkept(clerk().make_ready([Note("one"), Answer(1, None)]).doings)
    assert told == [Publish(RegistryEvent(1_000_000.0, "one"), Level.INFO), Answer(1, None)]


def test_what_was_kept_comes_back_with_its_age_and_what_has_no_date_is_passed_over() -> None:
    kept = [
        Change(Kept.NODE, "node-1", {WRITTEN_AT: 1_000_000.0, DOCUMENT: {"a": 1}}),
        Change(Kept.NODE, "node-2", {DOCUMENT: {"a": 1}}),
        Change(Kept.NODE, "node-3", None),
    ]
    assert list(restored(kept, 1_000_060.0)) == [Restored(Kept.NODE, "node-1", {"a": 1}, 60.0)]
