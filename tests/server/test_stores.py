import os
from pathlib import Path

import pytest

from gpu_agent.runtime.state_dir import StateDirectoryError
from gpu_agent.server.stores import FILE, checked, database_path, lock_of, open_store, refuse_anothers
from gpu_agent.store.base import StoreError, UnusableError
from gpu_agent.store.memory import MemoryStore
from gpu_agent.store.sqlite import SqliteStore


@pytest.mark.parametrize(
    ("place", "path"),
    [
        ("sqlite", "/state/registry.db"),
        ("sqlite:///srv/r.db", "/srv/r.db"),
        ("sqlite:////srv/r.db", "/srv/r.db"),
        ("sqlite:///srv/a%20b/r.db", "/srv/a b/r.db"),
        ("sqlite:///srv/a b/r.db", "/srv/a b/r.db"),
    ],
)
def test_a_place_on_disk_is_a_whole_path(place: str, path: str) -> None:
    assert database_path(checked(place), Path("/state")) == Path(path)


def test_memory_has_no_path() -> None:
    assert database_path(checked("memory"), Path("/state")) is None


@pytest.mark.parametrize(
    "place",
    [
        "tape",
        "",
        "sqlite:",
        "sqlite:r.db",
        "sqlite://",
        "sqlite:///",
        "sqlite://r.db",
        "sqlite://host/r.db",
        "sqlite:///srv/",
        "sqlite:///srv/..",
        "sqlite:///srv/r.db?mode=ro",
        "sqlite:///srv/r.db#a",
        "sqlite:///srv/%00",
        "valkey://host",
    ],
)
def test_any_other_place_is_refused_with_what_may_be_written(place: str) -> None:
    with pytest.raises(ValueError, match="sqlite:///PATH"):
        checked(place)


def test_the_state_directory_is_made_for_the_default(tmp_path: Path) -> None:
    store = open_store("sqlite", tmp_path / "state")
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "state" / FILE).exists()
    store.close()


def test_a_state_directory_that_others_may_enter_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir(mode=0o755)
    with pytest.raises(StateDirectoryError):
        open_store("sqlite", folder)
    assert list(folder.iterdir()) == []


def test_a_second_registry_on_the_same_file_is_refused_naming_the_first_ones_process(tmp_path: Path) -> None:
    place = f"sqlite://{tmp_path / 'r.db'}"
    first = open_store(place, tmp_path)
    with pytest.raises(StoreError, match=rf"in use by process {os.getpid()}"):
        open_store(place, tmp_path)
    first.close()
    open_store(place, tmp_path).close()


def test_a_file_that_cannot_be_used_is_let_go_again(tmp_path: Path) -> None:
    path = tmp_path / "r.db"
    path.write_text("no database" * 100)
    with pytest.raises(UnusableError):
        open_store(f"sqlite://{path}", tmp_path)
    lock_of(path).release()


def test_a_place_that_cannot_be_locked_is_told_with_the_next_step() -> None:
    with pytest.raises(StoreError, match="check the owner"):
        lock_of(Path("/proc/nobody/r.db"))


def test_each_place_has_its_keeper(tmp_path: Path) -> None:
    assert isinstance(open_store("memory", tmp_path), MemoryStore)
    on_disk = open_store(f"sqlite://{tmp_path / 'r.db'}", tmp_path)
    assert isinstance(on_disk, SqliteStore)
    on_disk.close()


def test_a_registry_whose_state_is_elsewhere_keeps_out_of_anothers_directory(tmp_path: Path) -> None:
    refuse_anothers(tmp_path, "memory")
    (tmp_path / FILE).touch()
    for place in ("memory", f"sqlite://{tmp_path}/other.db"):
        with pytest.raises(StateDirectoryError, match=r"operator token would be lost.*--state-dir"):
            refuse_anothers(tmp_path, place)
    (tmp_path / "link").symlink_to(tmp_path)
    for place in ("sqlite", f"sqlite://{tmp_path}/link/{FILE}"):
        refuse_anothers(tmp_path, place)


def test_what_belongs_to_a_database_lies_beside_the_file_whatever_leads_to_it(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link.db").symlink_to(tmp_path / "disk" / "r.db")
    place = f"sqlite://{tmp_path / 'link.db'}"
    assert database_path(place, tmp_path) == tmp_path / "disk" / "r.db"
    first = open_store(place, tmp_path)
    with pytest.raises(StoreError, match="in use"):
        open_store(f"sqlite://{tmp_path / 'disk' / 'r.db'}", tmp_path)
    first.close()
