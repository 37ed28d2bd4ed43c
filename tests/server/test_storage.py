"""A `--store` URL names one store; who else could write its database is refused, and a backup is restored."""

import os
import stat
import sys
from contextlib import closing
from pathlib import Path

import pytest

from gpu_agent.registry.actions import Change, DocumentKind
from gpu_agent.runtime.state_dir import StateDirectoryError
from gpu_agent.server.storage import (
    FILE,
    DatabaseExistsError,
    EtcdLocation,
    EtcdSecurity,
    MemoryLocation,
    SqliteLocation,
    check_location,
    lock_database,
    open_store,
    parse_location,
    refuse_foreign_state_dir,
    restore,
    secure_location,
)
from gpu_agent.store.base import Batch, StoreError, UnusableError
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
def test_a_location_names_an_absolute_path(place: str, path: str) -> None:
    location = parse_location(check_location(place), Path("/state"))
    assert location == SqliteLocation(Path(path), in_state_dir=place == "sqlite")


@pytest.mark.parametrize(
    ("place", "members", "prefix"),
    [
        ("etcd://a:2379", "a:2379", "gpu-registry"),
        ("etcd://a:2379/", "a:2379", "gpu-registry"),
        ("etcd://a:2379,b:2380,[::1]:2381/fleet/one", "a:2379,b:2380,[::1]:2381", "fleet/one"),
        ("etcd://a:2379,a:2379/x", "a:2379", "x"),
    ],
)
def test_a_location_in_etcd_names_members_and_a_prefix(place: str, members: str, prefix: str) -> None:
    location = parse_location(check_location(place), Path("/state"))
    assert isinstance(location, EtcdLocation)
    assert (",".join(map(str, location.members)), location.prefix) == (members, prefix)
    assert str(location) == f"etcd://{members}/{prefix}"


@pytest.mark.parametrize(
    ("place", "problem"),
    [
        ("etcd://", "is not HOST:PORT"),
        ("etcd:///prefix", "is not HOST:PORT"),
        ("etcd://a", "'a' is not HOST:PORT"),
        ("etcd://a:2379,,b:2379", "is not HOST:PORT"),
        ("etcd://::1:2379", "IPv6 address in brackets"),
        ("etcd://a:0", "no port 0"),
        ("etcd://a:70000", "at most 65535"),
        ("etcd://user:secret@a:2379", "etcd_password_file"),
        ("etcd://a:2379//", "no prefix"),
        ("etcd://a:2379/x?tls=on", "no prefix"),
    ],
)
def test_a_location_in_etcd_that_is_none_is_refused_with_its_form(place: str, problem: str) -> None:
    with pytest.raises(ValueError, match=rf"{problem}.*write etcd://HOST:PORT") as refused:
        check_location(place)
    assert "secret" not in str(refused.value)


@pytest.mark.skipif(os.name != "posix", reason="Windows separates users by what a folder grants")
def test_a_password_that_others_may_read_is_refused(tmp_path: Path) -> None:
    password = tmp_path / "password"
    with pytest.raises(UnusableError, match="cannot be read"):
        open_store("etcd://127.0.0.1:1", tmp_path, etcd=EtcdSecurity(user="u", password_file=password))
    password.write_text("secret")
    password.chmod(0o644)
    with pytest.raises(UnusableError, match="chmod 600"):
        open_store("etcd://127.0.0.1:1", tmp_path, etcd=EtcdSecurity(user="u", password_file=password))


def test_memory_has_no_path() -> None:
    assert parse_location(check_location("memory"), Path("/state")) == MemoryLocation()


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
def test_any_other_location_is_refused_with_the_valid_forms(place: str) -> None:
    with pytest.raises(ValueError, match="sqlite:///PATH"):
        check_location(place)


def test_the_state_directory_is_created_for_the_default(tmp_path: Path) -> None:
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


def test_an_unusable_file_is_unlocked_again(tmp_path: Path) -> None:
    path = tmp_path / "r.db"
    path.write_text("no database" * 100)
    with pytest.raises(UnusableError):
        open_store(f"sqlite://{path}", tmp_path)
    lock_database(path).release()


def test_a_location_that_cannot_be_locked_is_an_error_with_the_next_step() -> None:
    with pytest.raises(StoreError, match="check the owner"):
        lock_database(Path("/proc/absent/r.db"))


def test_each_location_opens_its_store(tmp_path: Path) -> None:
    assert isinstance(open_store("memory", tmp_path), MemoryStore)
    on_disk = open_store(f"sqlite://{tmp_path / 'r.db'}", tmp_path)
    assert isinstance(on_disk, SqliteStore)
    on_disk.close()


def test_a_registry_whose_state_is_elsewhere_refuses_anothers_state_directory(tmp_path: Path) -> None:
    refuse_foreign_state_dir(tmp_path, "memory")
    (tmp_path / FILE).touch()
    for place in ("memory", f"sqlite://{tmp_path}/other.db"):
        with pytest.raises(StateDirectoryError, match=r"operator token would be lost.*--state-dir"):
            refuse_foreign_state_dir(tmp_path, place)
    (tmp_path / "link").symlink_to(tmp_path)
    for place in ("sqlite", f"sqlite://{tmp_path}/link/{FILE}"):
        refuse_foreign_state_dir(tmp_path, place)


def test_the_lock_and_journal_are_beside_the_file_itself_behind_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link.db").symlink_to(tmp_path / "disk" / "r.db")
    place = f"sqlite://{tmp_path / 'link.db'}"
    location = parse_location(place, tmp_path)
    assert isinstance(location, SqliteLocation)
    assert location.path == tmp_path / "disk" / "r.db"
    first = open_store(place, tmp_path)
    with pytest.raises(StoreError, match="in use"):
        open_store(f"sqlite://{tmp_path / 'disk' / 'r.db'}", tmp_path)
    first.close()


pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="owners and modes are POSIX's")
as_root = pytest.mark.skipif(
    sys.platform == "win32" or os.geteuid() != 0, reason="only root can give a file away"
)
SOMEBODY = 12345


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_directory_that_others_may_only_read_is_accepted(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    secure_location(tmp_path / "r.db")


@pytest.mark.parametrize("open_to", [0o770, 0o707, 0o1777, 0o722])
def test_a_directory_that_others_may_write_is_refused_with_the_next_step(
    tmp_path: Path, open_to: int
) -> None:
    tmp_path.chmod(open_to)
    with pytest.raises(UnusableError, match=rf"{tmp_path} can be written.*chmod go-w.*/registry/r\.db"):
        secure_location(tmp_path / "r.db")


def test_the_directory_of_a_linked_file_is_checked_too(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o777)
    (tmp_path / "r.db").symlink_to(tmp_path / "shared" / "r.db")
    with pytest.raises(UnusableError, match=r"shared can be written"):
        secure_location(tmp_path / "r.db")


@pytest.mark.parametrize("open_to", [0o620, 0o602, 0o666])
def test_a_file_that_others_may_write_is_refused_untouched(tmp_path: Path, open_to: int) -> None:
    path = tmp_path / "r.db"
    path.touch()
    path.chmod(open_to)
    with pytest.raises(UnusableError, match=rf"can be written.*mode 0{open_to:o}.*chmod 600"):
        secure_location(path)
    assert mode(path) == open_to


def test_a_file_that_others_may_read_is_made_private(tmp_path: Path) -> None:
    path = tmp_path / "r.db"
    path.touch(mode=0o644)
    secure_location(path)
    assert mode(path) == 0o600


@as_root
def test_another_users_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.db"
    path.touch(mode=0o600)
    os.chown(path, SOMEBODY, SOMEBODY)
    with pytest.raises(UnusableError, match=f"belongs to user {SOMEBODY}"):
        secure_location(path)


@as_root
def test_another_users_directory_is_refused(tmp_path: Path) -> None:
    os.chown(tmp_path, SOMEBODY, SOMEBODY)
    with pytest.raises(UnusableError, match=f"belongs to user {SOMEBODY}"):
        secure_location(tmp_path / "r.db")


def test_a_refused_database_is_not_opened_and_is_unlocked_again(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(UnusableError):
        open_store(f"sqlite://{tmp_path / 'r.db'}", tmp_path / "state")
    assert not (tmp_path / "r.db").exists()
    lock_database(tmp_path / "r.db").release()
    open_store(f"sqlite://{tmp_path / 'new' / 'r.db'}", tmp_path / "state").close()


@pytest.fixture
def backup(tmp_path: Path) -> Path:
    with closing(SqliteStore(tmp_path / "backup.db")) as store:
        store.save([Batch([Change(DocumentKind.NODE, "node-1", {})])])
    return tmp_path / "backup.db"


def place_of(path: Path) -> str:
    return f"sqlite://{path}"


def test_restore_puts_a_backup_where_a_registry_looks(backup: Path, tmp_path: Path) -> None:
    done = restore(backup, "sqlite", tmp_path / "state", replace=False)
    assert (done.place, done.holds.nodes, done.before) == (str(tmp_path / "state" / "registry.db"), 1, None)
    with closing(open_store("sqlite", tmp_path / "state")) as store:
        assert [change.key for change in store.load().changes] == ["node-1"]


def test_an_existing_database_is_replaced_only_with_replace(backup: Path, tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    path.write_text("precious")
    with pytest.raises(DatabaseExistsError):
        restore(backup, place_of(path), tmp_path, replace=False)
    assert path.read_text() == "precious"
    done = restore(backup, place_of(path), tmp_path, replace=True)
    assert done.before is not None
    assert done.before.read_text() == "precious"


def test_restore_changes_nothing_under_a_running_registry(backup: Path, tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    with (
        closing(open_store(place_of(path), tmp_path)) as store,
        pytest.raises(StoreError, match="in use by process"),
    ):
        restore(backup, place_of(path), tmp_path, replace=True)
    assert store is not None
    assert list(tmp_path.glob("*replaced*")) == []


def test_a_file_that_is_no_backup_changes_nothing(tmp_path: Path) -> None:
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


def test_a_memory_store_cannot_be_restored(backup: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="sqlite:///PATH"):
        restore(backup, "memory", tmp_path, replace=True)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives links away")
def test_root_replaces_no_file_behind_a_link_of_the_registrys_user(backup: Path, tmp_path: Path) -> None:
    (precious := tmp_path / "shadow").write_text("precious")
    (state := tmp_path / "state").mkdir()
    (state / "registry.db").symlink_to(precious)
    for path in (state, state / "registry.db"):
        os.chown(path, 12345, 12345, follow_symlinks=False)
    with pytest.raises(StoreError, match=r"nothing was restored: .* is a link that user 12345 has made"):
        restore(backup, "sqlite", state, replace=True)
    assert precious.read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["backup.db", "shadow", "state"]
