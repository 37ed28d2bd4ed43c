from pathlib import Path

from gpu_agent.registry.actions import Change, Kept
from gpu_agent.store.base import Batch, Store
from gpu_agent.store.sqlite import SqliteStore
from tests.store.contract import DOCUMENT, StoreContract, event


class TestSqliteStore(StoreContract):
    def open(self, folder: Path) -> Store:
        return SqliteStore(folder / "registry.db")


def test_what_was_saved_is_there_when_the_file_is_opened_again(tmp_path: Path) -> None:
    first = SqliteStore(tmp_path / "registry.db")
    first.save([Batch([Change(Kept.NODE, "node-1", DOCUMENT)], [event(1), event(2, None)])])
    kept = first.load()
    first.close()
    second = SqliteStore(tmp_path / "registry.db")
    assert second.load() == kept
    second.close()
