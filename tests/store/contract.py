"""The promise of `gpu_agent.store.base`, as tests that every keeper's own test file inherits."""

import math
from abc import ABC, abstractmethod

import pytest

from gpu_agent.registry.actions import Change, Kept
from gpu_agent.store.base import Store, StoreError

DOCUMENT = {
    "text": "é漢字 \u0000 \U0001f600",
    "number": 1.5,
    "whole": 2**53,
    "flag": True,
    "nothing": None,
    "list": [1, [2], {}],
    "object": {"nested": {"deeper": []}},
}


def kept(store: Store) -> dict[tuple[Kept, str], object]:
    return {(change.kind, change.key): change.document for change in store.load()}


class StoreContract(ABC):
    """Inherit, and open an empty keeper."""

    @abstractmethod
    def open(self) -> Store:
        """A keeper that holds nothing."""

    @pytest.fixture
    def store(self) -> Store:
        return self.open()

    def test_a_new_keeper_holds_nothing(self, store: Store) -> None:
        assert list(store.load()) == []

    def test_what_was_saved_is_loaded_unchanged(self, store: Store) -> None:
        store.save([Change(Kept.NODE, "node-1", DOCUMENT)])
        assert kept(store) == {(Kept.NODE, "node-1"): DOCUMENT}

    def test_the_same_key_of_two_kinds_names_two_things(self, store: Store) -> None:
        store.save([Change(Kept.NODE, "one", {"a": 1}), Change(Kept.CLAIM, "one", {"b": 2})])
        assert kept(store) == {(Kept.NODE, "one"): {"a": 1}, (Kept.CLAIM, "one"): {"b": 2}}

    def test_a_later_document_replaces_an_earlier_one_whole(self, store: Store) -> None:
        store.save([Change(Kept.NODE, "node-1", {"a": 1, "b": 2})])
        store.save([Change(Kept.NODE, "node-1", {"a": 3})])
        assert kept(store) == {(Kept.NODE, "node-1"): {"a": 3}}

    def test_changes_of_one_save_are_applied_in_order(self, store: Store) -> None:
        store.save(
            [
                Change(Kept.NODE, "node-1", {"a": 1}),
                Change(Kept.NODE, "node-1", None),
                Change(Kept.NODE, "node-1", {"a": 2}),
                Change(Kept.NODE, "node-2", {"a": 1}),
                Change(Kept.NODE, "node-2", None),
            ]
        )
        assert kept(store) == {(Kept.NODE, "node-1"): {"a": 2}}

    def test_what_is_let_go_is_gone_and_the_rest_stays(self, store: Store) -> None:
        store.save([Change(Kept.CLAIM, "job-1", {}), Change(Kept.CLAIM, "job-2", {})])
        store.save([Change(Kept.CLAIM, "job-1", None)])
        assert kept(store) == {(Kept.CLAIM, "job-2"): {}}

    def test_letting_go_of_what_is_not_kept_is_no_error(self, store: Store) -> None:
        store.save([Change(Kept.NODE, "never-there", None)])
        assert kept(store) == {}

    def test_saving_nothing_is_no_error(self, store: Store) -> None:
        store.save([])
        assert kept(store) == {}

    @pytest.mark.parametrize("unkeepable", [object(), math.nan, math.inf, {1, 2}, b"bytes"], ids=repr)
    def test_a_save_that_fails_in_part_fails_whole(self, store: Store, unkeepable: object) -> None:
        store.save([Change(Kept.NODE, "node-1", {"a": 1})])
        with pytest.raises(StoreError):
            store.save(
                [
                    Change(Kept.NODE, "node-1", {"a": 2}),
                    Change(Kept.NODE, "node-2", {"a": 2}),
                    Change(Kept.NODE, "node-3", {"bad": unkeepable}),
                ]
            )
        assert kept(store) == {(Kept.NODE, "node-1"): {"a": 1}}

    def test_changing_a_saved_document_changes_nothing_that_is_kept(self, store: Store) -> None:
        document: dict[str, object] = {"list": [1]}
        store.save([Change(Kept.NODE, "node-1", document)])
        document["list"] = [2]
        assert kept(store) == {(Kept.NODE, "node-1"): {"list": [1]}}

    def test_changing_a_loaded_document_changes_nothing_that_is_kept(self, store: Store) -> None:
        store.save([Change(Kept.NODE, "node-1", {"list": [1]})])
        (loaded,) = store.load()
        assert isinstance(loaded.document, dict)
        loaded.document["list"].append(2)
        assert kept(store) == {(Kept.NODE, "node-1"): {"list": [1]}}

    def test_keys_are_told_apart_exactly(self, store: Store) -> None:
        keys = ["a", "A", "a ", "a/b", "a.b", "é", "e\u0301", "%", "_", "'", '"', "*"]
        store.save([Change(Kept.CLAIM, key, {"key": key}) for key in keys])
        assert kept(store) == {(Kept.CLAIM, key): {"key": key} for key in keys}

    def test_a_closed_keeper_refuses_with_the_next_step(self, store: Store) -> None:
        store.close()
        store.close()
        with pytest.raises(StoreError, match="start the registry"):
            store.save([Change(Kept.NODE, "node-1", {})])
        with pytest.raises(StoreError, match="start the registry"):
            list(store.load())
