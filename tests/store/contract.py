"""The contract of `gpu_agent.store.base`, as tests that the test file of every store inherits."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from gpu_agent.registry.actions import Change, DocumentKind
from gpu_agent.store.base import (
    EVENTS_PER_NODE,
    RECENT_EVENTS,
    Batch,
    Loaded,
    Store,
    StoreError,
    UnstorableError,
)
from gpu_agent.wire.api import RegistryEvent

DOCUMENT = {
    "text": "é漢字 \u0000 \U0001f600",
    "number": 1.5,
    "whole": 2**53,
    "flag": True,
    "nothing": None,
    "list": [1, [2], {}],
    "object": {"nested": {"deeper": []}},
}


def save(store: Store, changes: Sequence[Change], events: Sequence[RegistryEvent] = ()) -> None:
    store.save([Batch(changes, events)])


def stored(store: Store) -> dict[tuple[DocumentKind, str], object]:
    return {(change.kind, change.key): change.document for change in store.load().changes}


def event(number: int, node_id: str | None = "node-1") -> RegistryEvent:
    return RegistryEvent(float(number), "something_happened", node_id, {"number": number}, number)


def numbers(store: Store) -> dict[str, list[int | None]]:
    return {node_id: [one.id for one in events] for node_id, events in store.load().histories.items()}


class StoreContract(ABC):
    """Inherit, and open an empty store."""

    @abstractmethod
    def open(self, folder: Path) -> Store:
        """A store that holds nothing."""

    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[Store]:
        store = self.open(tmp_path)
        yield store
        store.close()

    def test_a_new_store_holds_nothing(self, store: Store) -> None:
        assert store.load() == Loaded([], [], {})

    def test_what_was_saved_is_loaded_unchanged(self, store: Store) -> None:
        save(store, [Change(DocumentKind.NODE, "node-1", DOCUMENT)])
        assert stored(store) == {(DocumentKind.NODE, "node-1"): DOCUMENT}

    def test_the_same_key_of_two_kinds_names_two_things(self, store: Store) -> None:
        save(store, [Change(DocumentKind.NODE, "one", {"a": 1}), Change(DocumentKind.CLAIM, "one", {"b": 2})])
        assert stored(store) == {(DocumentKind.NODE, "one"): {"a": 1}, (DocumentKind.CLAIM, "one"): {"b": 2}}

    def test_a_later_document_replaces_an_earlier_one_whole(self, store: Store) -> None:
        save(store, [Change(DocumentKind.NODE, "node-1", {"a": 1, "b": 2})])
        save(store, [Change(DocumentKind.NODE, "node-1", {"a": 3})])
        assert stored(store) == {(DocumentKind.NODE, "node-1"): {"a": 3}}

    def test_changes_of_one_save_are_applied_in_order(self, store: Store) -> None:
        save(
            store,
            [
                Change(DocumentKind.NODE, "node-1", {"a": 1}),
                Change(DocumentKind.NODE, "node-1", None),
                Change(DocumentKind.NODE, "node-1", {"a": 2}),
                Change(DocumentKind.NODE, "node-2", {"a": 1}),
                Change(DocumentKind.NODE, "node-2", None),
            ],
        )
        assert stored(store) == {(DocumentKind.NODE, "node-1"): {"a": 2}}

    def test_a_deleted_document_is_gone_and_the_rest_stays(self, store: Store) -> None:
        save(store, [Change(DocumentKind.CLAIM, "job-1", {}), Change(DocumentKind.CLAIM, "job-2", {})])
        save(store, [Change(DocumentKind.CLAIM, "job-1", None)])
        assert stored(store) == {(DocumentKind.CLAIM, "job-2"): {}}

    def test_deleting_what_is_not_stored_is_no_error(self, store: Store) -> None:
        save(store, [Change(DocumentKind.NODE, "never-there", None)])
        assert stored(store) == {}

    def test_saving_nothing_is_no_error(self, store: Store) -> None:
        save(store, [])
        assert stored(store) == {}

    @pytest.mark.parametrize("unstorable", [object, math.nan, math.inf, {1, 2}, b"bytes"], ids=repr)
    def test_a_save_that_fails_in_part_fails_whole(self, store: Store, unstorable: object) -> None:
        save(store, [Change(DocumentKind.NODE, "node-1", {"a": 1})])
        with pytest.raises(UnstorableError):
            save(
                store,
                [
                    Change(DocumentKind.NODE, "node-1", {"a": 2}),
                    Change(DocumentKind.NODE, "node-2", {"a": 2}),
                    Change(DocumentKind.NODE, "node-3", {"bad": unstorable}),
                ],
            )
        assert stored(store) == {(DocumentKind.NODE, "node-1"): {"a": 1}}

    def test_changing_a_saved_document_changes_nothing_that_is_stored(self, store: Store) -> None:
        document: dict[str, object] = {"list": [1]}
        save(store, [Change(DocumentKind.NODE, "node-1", document)])
        document["list"] = [2]
        assert stored(store) == {(DocumentKind.NODE, "node-1"): {"list": [1]}}

    def test_changing_a_loaded_document_changes_nothing_that_is_stored(self, store: Store) -> None:
        save(store, [Change(DocumentKind.NODE, "node-1", {"list": [1]})])
        (loaded,) = store.load().changes
        assert isinstance(loaded.document, dict)
        loaded.document["list"].append(2)
        assert stored(store) == {(DocumentKind.NODE, "node-1"): {"list": [1]}}

    def test_keys_are_told_apart_exactly(self, store: Store) -> None:
        keys = ["a", "A", "a ", "a/b", "a.b", "é", "e\u0301", "%", "_", "'", '"', "*"]
        save(store, [Change(DocumentKind.CLAIM, key, {"key": key}) for key in keys])
        assert stored(store) == {(DocumentKind.CLAIM, key): {"key": key} for key in keys}

    def test_a_closed_store_refuses_with_the_next_step(self, store: Store) -> None:
        store.close()
        store.close()
        with pytest.raises(StoreError, match="start the registry"):
            save(store, [Change(DocumentKind.NODE, "node-1", {})])
        with pytest.raises(StoreError, match="start the registry"):
            store.load()

    def test_events_are_loaded_in_the_order_of_their_ids_with_all_their_fields(self, store: Store) -> None:
        first = RegistryEvent(1.5, "node_registered", "node-1", {"gpu_count": 2, "list": [1]}, 1)
        second = RegistryEvent(2.5, "registry_restored", None, {}, 7)
        save(store, [Change(DocumentKind.NODE, "node-1", {})], [first])
        save(store, [], [second])
        assert store.load().recent == [first, second]
        assert store.load().histories == {"node-1": [first]}

    def test_an_event_joins_the_history_of_a_stored_node_and_of_no_other(self, store: Store) -> None:
        save(store, [], [event(1, "stranger"), event(2, "node-1")])
        save(store, [Change(DocumentKind.NODE, "node-1", {})], [event(3, "node-1")])
        save(store, [Change(DocumentKind.CLAIM, "stranger", {})], [event(4, "stranger"), event(5, "node-1")])
        assert numbers(store) == {"node-1": [3, 5]}

    def test_a_nodes_history_is_deleted_with_its_document_and_recent_events_stay(self, store: Store) -> None:
        save(store, [Change(DocumentKind.NODE, "node-1", {})], [event(1)])
        save(store, [Change(DocumentKind.NODE, "node-1", None)], [event(2)])
        assert numbers(store) == {}
        assert [one.id for one in store.load().recent] == [1, 2]

    def test_a_node_that_comes_back_begins_a_new_history(self, store: Store) -> None:
        node = Change(DocumentKind.NODE, "node-1", {})
        gone = Change(DocumentKind.NODE, "node-1", None)
        store.save([Batch([node], [event(1)]), Batch([gone], [event(2)]), Batch([node], [event(3)])])
        assert numbers(store) == {"node-1": [3]}

    def test_a_history_keeps_the_newest_events_only(self, store: Store) -> None:
        save(store, [Change(DocumentKind.NODE, "node-1", {})])
        for first in range(1, 2 * EVENTS_PER_NODE + 6, 7):
            save(store, [], [event(number) for number in range(first, first + 7)])
        newest = store.load().recent[-1].id or 0
        assert numbers(store)["node-1"] == list(range(newest - EVENTS_PER_NODE + 1, newest + 1))

    def test_old_events_go_unless_they_are_of_a_nodes_history(self, store: Store) -> None:
        save(store, [Change(DocumentKind.NODE, "node-1", {})], [event(1), event(2, None)])
        save(store, [], [event(RECENT_EVENTS, None), event(RECENT_EVENTS + 2, None)])
        assert [one.id for one in store.load().recent] == [RECENT_EVENTS, RECENT_EVENTS + 2]
        assert numbers(store) == {"node-1": [1]}

    def test_an_event_that_cannot_be_kept_fails_its_whole_save(self, store: Store) -> None:
        unstorable = RegistryEvent(1.0, "odd", None, {"odd": object()}, 2)
        with pytest.raises(UnstorableError):
            save(store, [Change(DocumentKind.NODE, "node-1", {})], [event(1), unstorable])
        assert store.load() == Loaded([], [], {})

    def test_several_batches_are_kept_together_or_not_at_all(self, store: Store) -> None:
        good = Batch([Change(DocumentKind.NODE, "node-1", {})], [event(1)])
        with pytest.raises(UnstorableError):
            store.save([good, Batch([Change(DocumentKind.NODE, "node-2", {"bad": math.nan})])])
        assert store.load() == Loaded([], [], {})
        store.save([good, Batch([Change(DocumentKind.NODE, "node-1", {"a": 1})], [event(2)])])
        assert stored(store) == {(DocumentKind.NODE, "node-1"): {"a": 1}}

    @pytest.mark.parametrize("key", ["\ud800", "a\udfff"], ids=ascii)
    def test_a_key_that_is_no_text_is_refused(self, store: Store, key: str) -> None:
        with pytest.raises(UnstorableError, match="no text"):
            save(store, [Change(DocumentKind.CLAIM, key, {})])
        with pytest.raises(UnstorableError, match="no text"):
            save(store, [], [event(1, key)])

    def test_what_was_stored_already_may_be_saved_again_alone_or_with_later_batches(
        self, store: Store
    ) -> None:
        """After a save whose outcome is unknown the registry saves it again."""
        node = Change(DocumentKind.NODE, "node-1", {"a": 1})
        first = Batch([node], [event(1), event(2)])
        later = Batch([Change(DocumentKind.NODE, "node-1", {"a": 2})], [event(3)])
        store.save([first])
        store.save([first])
        store.save([first, later])
        assert stored(store) == {(DocumentKind.NODE, "node-1"): {"a": 2}}
        assert [one.id for one in store.load().recent] == [1, 2, 3]
        assert numbers(store) == {"node-1": [1, 2, 3]}

    def test_the_history_of_a_node_that_came_back_survives_a_second_save(self, store: Store) -> None:
        node, gone = Change(DocumentKind.NODE, "node-1", {}), Change(DocumentKind.NODE, "node-1", None)
        batches = [Batch([node], [event(1)]), Batch([gone], [event(2)]), Batch([node], [event(3)])]
        store.save(batches)
        store.save(batches)
        assert numbers(store) == {"node-1": [3]}
        assert [one.id for one in store.load().recent] == [1, 2, 3]
