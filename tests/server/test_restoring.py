import os
from contextlib import closing
from pathlib import Path

import pytest

from gpu_agent.registry.actions import Change, Kept
from gpu_agent.server.restoring import AlreadyThereError, restore
from gpu_agent.server.stores import open_store
from gpu_agent.store.base import Batch, StoreError, UnusableError
from gpu_agent.store.sqlite import SqliteStore


@pytest.fixture
def backup(tmp_path: Path) -> Path:
    with closing(SqliteStore(tmp_path / "backup.db")) as store:
        store.save([Batch([Change(Kept.NODE, "node-1", {})])])
    return tmp_path / "backup.db"


def place_of(path: Path) -> str:
    return f"sqlite://{path}"


def test_a_backup_lies_where_a_registry_looks(backup: Path, tmp_path: Path) -> None:
    done = restore(backup, "sqlite", tmp_path / "state", replace=False)
    assert (done.path, done.holds.nodes, done.before) == (tmp_path / "state" / "registry.db", 1, None)
    with closing(open_store("sqlite", tmp_path / "state")) as store:
        assert [change.key for change in store.load().changes] == ["node-1"]


def test_a_database_that_is_there_goes_only_when_told_so(backup: Path, tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    path.write_text("precious")
    with pytest.raises(AlreadyThereError):
        restore(backup, place_of(path), tmp_path, replace=False)
    assert path.read_text() == "precious"
    done = restore(backup, place_of(path), tmp_path, replace=True)
    assert done.before is not None
    assert done.before.read_text() == "precious"


def test_nothing_is_changed_under_a_registry_that_runs(backup: Path, tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    with (
        closing(open_store(place_of(path), tmp_path)) as store,
        pytest.raises(StoreError, match="in use by process"),
    ):
        restore(backup, place_of(path), tmp_path, replace=True)
    assert store is not None
    assert list(tmp_path.glob("*replaced*")) == []


def test_what_is_no_backup_changes_nothing(tmp_path: Path) -> None:
    path, text = tmp_path / "registry.db", tmp_path / "text"
    path.write_text("precious")
    text.write_text("no backup" * 1000)
    with pytest.raises(UnusableError, match=r"backup .*text cannot be used: .*; name another one$"):
        restore(text, place_of(path), tmp_path, replace=True)
    with pytest.raises(StoreError, match="no file"):
        restore(tmp_path / "missing", place_of(path), tmp_path, replace=True)
    with pytest.raises(StoreError, match="itself"):
        restore(path, place_of(path), tmp_path, replace=True)
    assert path.read_text() == "precious"


def test_a_registry_that_keeps_nothing_on_disk_has_no_place_for_it(backup: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="sqlite:///PATH"):
        restore(backup, "memory", tmp_path, replace=True)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives links away")
def test_root_replaces_no_file_of_the_machine_to_which_the_registrys_user_has_made_a_link(
    backup: Path, tmp_path: Path
) -> None:
    (precious := tmp_path / "shadow").write_text("precious")
    (state := tmp_path / "state").mkdir()
    (state / "registry.db").symlink_to(precious)
    for path in (state, state / "registry.db"):
        os.chown(path, 12345, 12345, follow_symlinks=False)
    with pytest.raises(StoreError, match=r"nothing was restored: .* is a link that user 12345 has made"):
        restore(backup, "sqlite", state, replace=True)
    assert precious.read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["backup.db", "shadow", "state"]
