import pytest

from gpu_agent.registry.actions import Kept, Level
from gpu_agent.registry.documents import Restored
from gpu_agent.registry.keeping import Keeping
from tests.registry.fleets import Registry


def keeping(registry: Registry) -> Keeping:
    return registry.fleet._keeping


@pytest.mark.parametrize("kind", list(Kept))
def test_what_is_not_there_any_more_is_let_go(kind: Kept) -> None:
    change = keeping(Registry()).written((kind, "gone"), 1000.0)
    assert (change.kind, change.key, change.document) == (kind, "gone", None)


def test_what_is_kept_of_a_node_and_its_claim_is_taken_back_node_first() -> None:
    registry, fresh = Registry(), Registry()
    registry.ready()
    registry.claim("job-1")
    kept = []
    for key in ((Kept.CLAIM, "job-1"), (Kept.NODE, "node-1")):
        document = keeping(registry).written(key, registry.now).document
        assert document is not None
        kept.append(Restored(*key, document, 0.0))
    steps = list(keeping(fresh).taking_back(kept, fresh.now))
    assert list(fresh.node().claims) == ["job-1"]
    assert [(list(step.touched), list(step.keys)) for step in steps] == [(["node-1"], []), ([], [])]


def test_what_cannot_be_read_changes_nothing_and_is_noted() -> None:
    registry = Registry()
    (step,) = keeping(registry).taking_back([Restored(Kept.NODE, "node-1", {}, 0.0)], registry.now)
    assert registry.fleet.size == 0
    (note,) = step.notes
    assert (note.event, note.level) == ("document_unreadable", Level.WARNING)
    assert "node-1" in str(note.fields["detail"])
