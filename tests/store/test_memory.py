from pathlib import Path

import pytest

from gpu_agent.registry.actions import Change, DocumentKind
from gpu_agent.store import base as texts
from gpu_agent.store.base import Batch, Store, StoreError
from gpu_agent.store.memory import MemoryStore
from tests.store.contract import StoreContract


class TestMemoryStore(StoreContract):
    def open(self, folder: Path) -> Store:  # noqa: ARG002 - it writes no file
        return MemoryStore()


def test_a_second_memory_store_shares_nothing_with_the_first() -> None:
    first, second = MemoryStore(), MemoryStore()
    first.save([Batch([Change(DocumentKind.NODE, "node-1", {})])])
    assert second.load().changes == []


def test_a_backup_of_what_is_not_on_disk_is_refused_with_the_next_step(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="--store sqlite"):
        MemoryStore().backup(tmp_path / "copy.db")


@pytest.mark.parametrize("text", ["[1]", "1", "{"])
def test_what_is_no_json_object_is_not_read(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - json says it in its own words
        texts.parse_text(text)
