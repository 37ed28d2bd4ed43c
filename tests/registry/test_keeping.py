import pytest

from gpu_agent.registry.actions import Kept
from gpu_agent.registry.documents import Restored, UnreadableDocumentError
from gpu_agent.registry.keeping import Keeping
from gpu_agent.registry.step import Step
from tests.registry.fleets import Registry


def keeping(registry: Registry) -> Keeping:
    return registry.fleet._keeping


@pytest.mark.parametrize("kind", list(Kept))
def test_what_is_not_there_any_more_is_let_go(kind: Kept) -> None:
    change = keeping(Registry()).written((kind, "gone"), 1000.0)
    assert (change.kind, change.key, change.document) == (kind, "gone", None)


def test_what_is_kept_of_a_node_and_its_claim_is_taken_back() -> None:
    registry, fresh = Registry(), Registry()
    registry.ready()
    registry.claim("job-1")
    step = Step(fresh.now)
    for key in ((Kept.NODE, "node-1"), (Kept.CLAIM, "job-1")):
        document = keeping(registry).written(key, registry.now).document
        assert document is not None
        keeping(fresh).take_back(Restored(*key, document, 0.0), step)
    assert list(fresh.node().claims) == ["job-1"]
    assert (list(step.touched), list(step.keys)) == (["node-1"], [])


def test_what_cannot_be_read_changes_nothing() -> None:
    registry = Registry()
    with pytest.raises(UnreadableDocumentError):
        keeping(registry).take_back(Restored(Kept.NODE, "node-1", {}, 0.0), Step(registry.now))
    assert registry.fleet.size == 0
