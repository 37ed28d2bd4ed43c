import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from gpu_agent.registry.actions import Change, DocumentKind
from gpu_agent.store.backup import Contents, inspect_backup, replace_database
from gpu_agent.store.base import Batch, StoreError, UnusableError
from gpu_agent.store.sqlite import SqliteStore
from tests.store.contract import event


def made(path: Path, *keys: str) -> Path:
    with closing(SqliteStore(path)) as store:
        changes = [Change(DocumentKind.NODE, key, {}) for key in keys]
        store.save([Batch([*changes, Change(DocumentKind.CLAIM, "job-1", {})], [event(1)])])
    return path


def keys(path: Path) -> list[str]:
    with closing(SqliteStore(path)) as store:
        return [change.key for change in store.load().changes if change.kind is DocumentKind.NODE]


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))  # noqa: PTH208 - names are what is asked about


def test_what_a_database_holds_is_counted_and_nothing_in_it_is_changed(tmp_path: Path) -> None:
    path = made(tmp_path / "a.db", "node-1", "node-2")
    before = path.read_bytes()
    assert inspect_backup(path) == Contents(nodes=2, claims=1, tokens=0, events=1)
    assert path.read_bytes() == before


def test_what_is_no_whole_database_of_a_registry_is_refused(tmp_path: Path) -> None:
    path = made(tmp_path / "a.db", *[f"node-{number}" for number in range(500)])
    short = tmp_path / "short.db"
    short.write_bytes(path.read_bytes()[:8192])
    text = tmp_path / "text.db"
    text.write_text("hello " * 1000)
    bare = tmp_path / "bare.db"
    with closing(sqlite3.connect(bare)) as database:
        database.execute("PRAGMA application_id = 1735423329")
        database.execute("PRAGMA user_version = 1")
    for broken in (short, text, bare):
        with pytest.raises(UnusableError, match=broken.name):
            inspect_backup(broken)
    with pytest.raises(StoreError, match=r"missing\.db"):
        inspect_backup(tmp_path / "missing.db")


def test_a_backup_is_put_where_nothing_was(tmp_path: Path) -> None:
    backup, place = made(tmp_path / "backup.db", "node-1"), tmp_path / "state"
    place.mkdir()
    assert replace_database(backup, place / "registry.db") is None
    assert names(place) == ["registry.db"]
    assert (place / "registry.db").stat().st_mode & 0o777 == 0o600
    assert keys(place / "registry.db") == ["node-1"]
    assert keys(backup) == ["node-1"]


def test_what_was_there_is_kept_beside_it_with_all_that_stood_in_its_log(tmp_path: Path) -> None:
    backup, place = made(tmp_path / "backup.db", "old"), tmp_path / "state"
    path = made(place / "registry.db", "present")
    copied = place / "unclean.db"
    with closing(SqliteStore(path)) as store:  # leave it as a kill does: with its last save in its log only
        store.save([Batch([Change(DocumentKind.NODE, "last", {})])])
        log = (place / "registry.db-wal").read_bytes()
        copied.write_bytes(path.read_bytes())
    copied.replace(path)
    (place / "registry.db-wal").write_bytes(log)
    before = replace_database(backup, path)
    assert before is not None
    assert before.name.startswith("registry.db.replaced-")
    assert names(place) == ["registry.db", before.name]
    assert keys(path) == ["old"]
    assert keys(before) == ["present", "last"]


def test_a_damaged_one_is_kept_as_it_is_and_its_log_never_meets_the_backup(tmp_path: Path) -> None:
    backup, place = made(tmp_path / "backup.db", "old"), tmp_path / "state"
    place.mkdir()
    path = place / "registry.db"
    path.write_text("damaged " * 1000)
    (place / "registry.db-wal").write_text("log")
    before = replace_database(backup, path)
    assert before is not None
    assert before.read_text() == "damaged " * 1000
    assert (place / f"{before.name}-wal").read_text() == "log"
    assert keys(path) == ["old"]


def test_two_that_are_replaced_in_one_second_are_both_kept(tmp_path: Path) -> None:
    backup, path = made(tmp_path / "backup.db", "new"), made(tmp_path / "registry.db", "first")
    first, second = replace_database(backup, path), replace_database(backup, path)
    assert first is not None
    assert second is not None
    assert (keys(first), keys(second)) == (["first"], ["new"])


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files away")
def test_what_root_restores_belongs_to_the_registrys_user(tmp_path: Path) -> None:
    backup, place = made(tmp_path / "backup.db", "old"), tmp_path / "state"
    place.mkdir()
    os.chown(place, 12345, 12345)
    (place / "registry.db.lock").touch()
    replace_database(backup, place / "registry.db")
    assert {path.stat().st_uid for path in place.iterdir()} == {12345}


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files away")
def test_root_gives_the_registrys_user_nothing_that_a_link_of_theirs_names(tmp_path: Path) -> None:
    backup, place = made(tmp_path / "backup.db", "old"), tmp_path / "state"
    place.mkdir()
    os.chown(place, 12345, 12345)
    (tmp_path / "shadow").touch()
    (place / "registry.db.lock").symlink_to(tmp_path / "shadow")
    replace_database(backup, place / "registry.db")
    assert (tmp_path / "shadow").stat().st_uid == 0
