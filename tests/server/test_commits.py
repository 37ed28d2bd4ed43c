from collections.abc import Sequence

from gpu_agent.registry.actions import Change, Kept
from gpu_agent.server.commits import SPOILT, Outcome, commit, keys_of, probe
from gpu_agent.store.base import Batch, StoreError, UnkeepableError
from gpu_agent.store.memory import MemoryStore


class Choosy(MemoryStore):
    """Has no room for some keys, and no form for others."""

    def save(self, batches: Sequence[Batch]) -> None:
        keys = {change.key for batch in batches for change in batch.changes}
        if "odd" in keys:
            raise UnkeepableError("no form")
        if "large" in keys:
            raise StoreError("no room")
        super().save(batches)


def batch(*keys: str) -> Batch:
    return Batch([Change(Kept.CLAIM, key, {}) for key in keys])


def test_all_that_can_be_kept_is_kept_in_one() -> None:
    store = MemoryStore()
    assert commit(store, [batch("a"), batch("b")]) == Outcome([None, None])
    assert [change.key for change in store.load().changes] == ["a", "b"]


def test_one_that_has_no_room_is_a_fault_of_the_store() -> None:
    store = Choosy()
    outcome = commit(store, [batch("a"), batch("large"), batch("b")])
    assert outcome == Outcome([None, "no room", None], fault="no room", bugs=[])
    assert [change.key for change in store.load().changes] == ["a", "b"]


def test_one_that_no_store_would_keep_is_a_bug_and_the_store_is_well() -> None:
    assert commit(Choosy(), [batch("a"), batch("odd")]) == Outcome([None, "no form"], bugs=["no form"])
    assert commit(Choosy(), [batch("odd")]) == Outcome(["no form"], bugs=["no form"])


def test_what_is_built_on_one_that_failed_fails_with_it() -> None:
    outcome = commit(Choosy(), [batch("odd", "a"), batch("a", "b"), batch("b"), batch("c")])
    assert outcome.problems == ["no form", SPOILT, SPOILT, None]


def test_a_probe_says_what_is_wrong() -> None:
    store = MemoryStore()
    assert probe(store) is None
    store.close()
    assert "closed" in str(probe(store))


def test_what_a_batch_holds_is_named() -> None:
    assert keys_of(batch("a", "b")) == {(Kept.CLAIM, "a"), (Kept.CLAIM, "b")}
