import os
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import pytest

from gpu_agent.registry.actions import Change, Kept
from gpu_agent.store import sqlite_file, sqlite_schema
from gpu_agent.store.base import Batch, StoreError, UnusableError
from gpu_agent.store.sqlite import SqliteStore
from tests.small_disk import Ballast, mounted

PAGE = 4096


def filled(path: Path) -> bytes:
    with closing(SqliteStore(path)) as store:
        store.save([Batch([Change(Kept.NODE, f"node-{n}", {"x": "y" * 500}) for n in range(50)])])
    return path.read_bytes()


def refused(path: Path) -> UnusableError:
    with pytest.raises(UnusableError) as caught:
        sqlite_file.opened(path)
    assert str(path) in str(caught.value)
    return caught.value


def test_a_file_that_is_no_database_is_refused_untouched(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    path.write_bytes(b"not a database" * 1000)
    assert "restore FILE" in str(refused(path))
    assert path.read_bytes() == b"not a database" * 1000


def test_a_database_with_a_damaged_page_is_refused_untouched(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    damaged = bytearray(filled(path))
    damaged[PAGE : PAGE + 200] = b"\xff" * 200
    path.write_bytes(damaged)
    error = refused(path)
    assert "damaged" in str(error)
    assert "\n" not in str(error)
    assert path.read_bytes() == damaged


def test_a_database_that_ends_too_early_is_refused_untouched(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    short = filled(path)[: 2 * PAGE]
    path.write_bytes(short)
    refused(path)
    assert path.read_bytes() == short


def test_a_newer_database_is_refused_untouched(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    filled(path)
    with closing(sqlite3.connect(path)) as newer:
        newer.execute("PRAGMA user_version = 99")
    before = path.read_bytes()
    assert "newer release" in str(refused(path))
    assert path.read_bytes() == before


def test_an_older_database_is_copied_before_it_is_brought_up_to_date(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "registry.db"
    filled(path)
    monkeypatch.setattr(sqlite_schema, "VERSION", 2)
    monkeypatch.setattr(sqlite_schema, "MIGRATIONS", {1: ["CREATE TABLE more (a)"]})
    sqlite_file.opened(path).close()
    with (
        closing(sqlite3.connect(path)) as upgraded,
        closing(sqlite3.connect(tmp_path / "registry.db.v1")) as kept,
    ):
        assert upgraded.execute("PRAGMA user_version").fetchone() == (2,)
        assert kept.execute("PRAGMA user_version").fetchone() == (1,)
        assert kept.execute("SELECT count(*) FROM documents").fetchone() == (50,)


def test_a_directory_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="name a file"):
        sqlite_file.opened(tmp_path)


def test_a_place_that_cannot_be_written_is_told_with_the_next_step() -> None:
    with pytest.raises(StoreError, match="check the owner"):
        sqlite_file.opened(Path("/proc/nobody/registry.db"))


def test_a_copy_never_replaces_what_is_there_unless_asked(tmp_path: Path) -> None:
    path, target = tmp_path / "registry.db", tmp_path / "copy.db"
    filled(path)
    target.write_text("precious")
    with pytest.raises(StoreError, match="there already"):
        sqlite_file.copy(path, target)
    assert target.read_text() == "precious"
    sqlite_file.copy(path, target, overwrite=True)
    assert target.stat().st_mode & 0o777 == 0o600
    with closing(SqliteStore(target)) as copy:
        assert len(copy.load().changes) == 50


def test_a_copy_that_finds_no_room_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    filled(path)
    with mounted(tmp_path / "disk", kib=256) as disk:
        Ballast(disk).fill()
        with pytest.raises(StoreError, match="free some space"):
            sqlite_file.copy(path, disk / "copy.db")
        assert os.listdir(disk) == ["ballast"]  # noqa: PTH208 - names are what is asked about


def test_a_database_on_a_full_disk_is_not_taken_for_a_damaged_one(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", kib=1024) as disk:
        filled(disk / "registry.db")
        Ballast(disk).fill()
        with pytest.raises(StoreError, match="disk") as caught:
            sqlite_file.opened(disk / "registry.db")
        assert not isinstance(caught.value, UnusableError)


def test_a_disk_that_may_only_be_read_is_told_with_the_next_step(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", kib=1024) as disk:
        filled(disk / "registry.db")
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with pytest.raises(StoreError, match="Read-only file system; check the owner"):
            sqlite_file.opened(disk / "registry.db")
