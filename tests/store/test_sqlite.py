import errno
import itertools
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from gpu_agent.registry.actions import Change, DocumentKind
from gpu_agent.store import sqlite as sqlite_file
from gpu_agent.store import sqlite as sqlite_schema
from gpu_agent.store.base import EVENTS_PER_NODE, Batch, Loaded, Store, StoreError, UnusableError
from gpu_agent.store.sqlite import SqliteStore, damaged_database, database_error
from gpu_agent.wire.api import RegistryEvent
from tests.programs import eventually
from tests.small_disk import Ballast, mounted
from tests.store.contract import DOCUMENT, StoreContract, event

FILE = "registry.db"


class TestSqliteStore(StoreContract):
    def open(self, folder: Path) -> Store:
        return SqliteStore(folder / FILE)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    with closing(SqliteStore(tmp_path / FILE)) as store:
        yield store


def node(number: int, size: int = 0) -> Batch:
    return Batch([Change(DocumentKind.NODE, f"node-{number}", {"filler": "x" * size})])


def save_one_after_another(store: Store, count: int) -> None:
    for number in range(2, count):
        store.save([node(number, 5000)])


def keys(store: Store) -> list[str]:
    return [change.key for change in store.load().changes]


def test_what_was_saved_is_there_when_the_file_is_opened_again(tmp_path: Path) -> None:
    first = SqliteStore(tmp_path / FILE)
    first.save([Batch([Change(DocumentKind.NODE, "node-1", DOCUMENT)], [event(1), event(2, None)])])
    stored_before = first.load()
    first.close()
    with closing(SqliteStore(tmp_path / FILE)) as second:
        assert second.load() == stored_before


def random_batches(dice: random.Random) -> list[Batch]:
    """Nodes and claims that come, change and go, and events about them, before and after."""
    ids = itertools.count(1)

    def change() -> Change:
        kind = dice.choice([DocumentKind.NODE, DocumentKind.CLAIM])
        document = dice.choice([None, {"number": dice.randrange(100)}])
        return Change(kind, f"{kind.value}-{dice.randrange(3)}", document)

    def some_event() -> RegistryEvent:
        return event(next(ids), dice.choice([None, "node-0", "node-1", "node-2"]))

    return [
        Batch(
            [change() for _ in range(dice.randrange(3))],
            [some_event() for _ in range(dice.randrange(3))],
        )
        for _ in range(dice.randrange(2, 100))
    ]


@pytest.mark.parametrize("seed", range(20))
def test_one_save_of_many_batches_stores_what_a_save_of_each_would(tmp_path: Path, seed: int) -> None:
    batches = random_batches(random.Random(seed))  # noqa: S311 - a test
    with closing(SqliteStore(tmp_path / "one.db")) as one, closing(SqliteStore(tmp_path / "each.db")) as each:
        one.save(batches)
        for batch in batches:
            each.save([batch])
        found, expected = one.load(), each.load()
    assert {(two.kind, two.key): two.document for two in found.changes} == {
        (two.kind, two.key): two.document for two in expected.changes
    }
    assert (found.recent, found.histories) == (expected.recent, expected.histories)


def test_an_empty_file_is_refused_as_a_damaged_one_is_and_stays(tmp_path: Path) -> None:
    (tmp_path / FILE).touch(mode=0o600)
    with pytest.raises(UnusableError, match=r"it is damaged \(it is empty, 0 bytes\); nothing was changed"):
        SqliteStore(tmp_path / FILE)
    assert (tmp_path / FILE).stat().st_size == 0


def test_a_registry_killed_while_it_makes_its_database_leaves_none_and_makes_it_at_the_next_start(
    tmp_path: Path,
) -> None:
    program = """if True:
        import os, signal, sys
        from pathlib import Path
        from gpu_agent.store import sqlite
        sqlite.sync = lambda path: os.kill(os.getpid(), signal.SIGKILL)
        sqlite.SqliteStore(Path(sys.argv[1]))
    """
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / FILE)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / FILE).exists()
    with closing(SqliteStore(tmp_path / FILE)) as store:
        store.save([node(1)])
    assert sorted(path.name for path in tmp_path.iterdir() if "new" in path.name) == []


def test_what_save_returned_for_outlives_a_kill_at_that_moment(tmp_path: Path) -> None:
    program = """if True:
        import sys
        from pathlib import Path
        from gpu_agent.registry.actions import Change, DocumentKind
        from gpu_agent.store.base import Batch
        from gpu_agent.store.sqlite import SqliteStore
        store = SqliteStore(Path(sys.argv[1]))
        for number in range(100_000):
            store.save([Batch([Change(DocumentKind.CLAIM, f"job-{number}", {})])])
            print(number, flush=True)
    """
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / FILE)], stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        for line in writer.stdout:
            if line == "30\n":
                break
        writer.send_signal(signal.SIGKILL)
        acknowledged = 30 + len(writer.stdout.readlines())
    with closing(SqliteStore(tmp_path / FILE)) as store:
        assert {f"job-{number}" for number in range(acknowledged + 1)} <= set(keys(store))


def test_file_and_directory_are_their_owners_alone(tmp_path: Path) -> None:
    with closing(SqliteStore(tmp_path / "deep" / "er" / FILE)) as store:
        store.save([node(1)])
        modes = {path.name: path.stat().st_mode & 0o777 for path in store.path.parent.iterdir()}
        assert set(modes.values()) == {0o600}
        assert store.path.parent.stat().st_mode & 0o777 == 0o700


def test_every_commit_reaches_the_disk_before_it_returns(store: SqliteStore) -> None:
    assert store._database is not None
    settings = [
        store._database.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")
    ]
    assert settings == ["wal", 2]


def test_kinds_of_another_release_are_left_where_they_are(store: SqliteStore) -> None:
    with closing(sqlite3.connect(store.path)) as other, other:
        other.execute("INSERT INTO documents VALUES ('lease', 'a', '{}')")
    store.save([node(1)])
    assert keys(store) == ["node-1"]
    with closing(sqlite3.connect(store.path)) as other:
        assert other.execute("SELECT count(*) FROM documents").fetchone() == (2,)


def test_a_full_disk_fails_the_save_alone_and_there_is_no_more_to_do_than_make_room(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", kib=2048) as disk, closing(SqliteStore(disk / FILE)) as store:
        store.save([node(1)])
        ballast = Ballast(disk)
        ballast.fill()
        with pytest.raises(StoreError, match=r"registry\.db .*disk is full.*free some space"):
            save_one_after_another(store, 1000)
        stored_before = keys(store)
        assert stored_before[0] == "node-1"
        ballast.throw_off()
        store.save([node(1001, 5000)])
        assert keys(store) == [*stored_before, "node-1001"]


def test_where_pages_run_out_the_save_fails_whole(store: SqliteStore) -> None:
    store.save([node(1)])
    assert store._database is not None
    pages = store._database.execute("PRAGMA page_count").fetchone()[0]
    store._database.execute(f"PRAGMA max_page_count = {pages + 4}")
    with pytest.raises(StoreError, match="disk is full"):
        store.save([node(number, 5000) for number in range(2, 20)])
    assert keys(store) == ["node-1"]
    store.save([node(2)])


@pytest.mark.parametrize("suffix", ["", "-wal"])
def test_a_file_that_was_taken_away_is_noticed_rather_than_written_into_nowhere(
    store: SqliteStore, suffix: str
) -> None:
    store.save([node(1)])
    (store.path.parent / f"{FILE}{suffix}").unlink()
    with pytest.raises(StoreError, match="moved, deleted or replaced"):
        store.save([node(2)])


def test_a_directory_that_disappears_is_noticed(tmp_path: Path) -> None:
    with closing(SqliteStore(tmp_path / "state" / FILE)) as store:
        shutil.rmtree(tmp_path / "state")
        with pytest.raises(StoreError, match="deleted"):
            store.save([node(1)])


def test_another_process_that_keeps_the_file_locked_is_waited_for_then_named(
    store: SqliteStore, tmp_path: Path
) -> None:
    assert store._database is not None
    store._database.execute("PRAGMA busy_timeout = 50")
    with closing(sqlite3.connect(tmp_path / FILE, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="another process holds its lock"):
            store.save([node(1)])
    store.save([node(1)])


def test_a_damaged_document_is_told_with_the_next_step_and_stays(store: SqliteStore) -> None:
    with closing(sqlite3.connect(store.path)) as other, other:
        other.execute("INSERT INTO documents VALUES ('node', 'a', 'no json')")
    with pytest.raises(UnusableError, match=r"registry\.db .*damaged.*restore"):
        store.load()


def test_a_backup_is_whole_while_others_save(store: SqliteStore, tmp_path: Path) -> None:
    store.save([Batch([Change(DocumentKind.NODE, "node-1", DOCUMENT)], [event(1)])])
    target = tmp_path / "copy.db"
    store.backup(target)
    store.save([node(2)])
    assert sorted(path.name for path in tmp_path.glob("copy.db*")) == ["copy.db"]
    with closing(SqliteStore(target)) as copy:
        assert copy.load() == Loaded(
            [Change(DocumentKind.NODE, "node-1", DOCUMENT)], [event(1)], {"node-1": [event(1)]}
        )


def test_a_closed_keeper_is_let_go_once(tmp_path: Path) -> None:
    released: list[int] = []
    store = SqliteStore(tmp_path / FILE, released=lambda: released.append(1))
    store.close()
    store.close()
    assert released == [1]
    with pytest.raises(StoreError, match="closed"):
        store.backup(tmp_path / "copy.db")


def test_numbers_beyond_those_of_a_database_are_refused(store: SqliteStore) -> None:
    with pytest.raises(StoreError, match="report it"):
        store.save([Batch([], [event(2**70)])])
    assert store.load() == Loaded([], [], {})


SAVE_AND_DIE = """if True:
    import os, sys
    from pathlib import Path
    from gpu_agent.registry.actions import Change, DocumentKind
    from gpu_agent.store.base import Batch
    from gpu_agent.store.sqlite import SqliteStore
    store = SqliteStore(Path(sys.argv[1]))
    store.save([Batch([Change(DocumentKind.CLAIM, "job-1", {})])])
    os.kill(os.getpid(), 9)
"""


def test_after_a_kill_it_opens_on_a_full_disk_too_and_goes_on_once_there_is_room(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", kib=1024) as disk:
        subprocess.run([sys.executable, "-c", SAVE_AND_DIE, str(disk / FILE)], check=False)
        ballast = Ballast(disk)
        ballast.fill()
        with closing(SqliteStore(disk / FILE)) as store:
            assert keys(store) == ["job-1"]
            with pytest.raises(StoreError, match="disk is full"):
                store.save([node(1, 5000)])
            ballast.throw_off()
            store.save([node(1, 5000)])


def test_the_log_beside_the_file_is_taken_up_after_a_kill(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", SAVE_AND_DIE, str(tmp_path / FILE)], check=False)
    assert eventually(lambda: (tmp_path / f"{FILE}-wal").stat().st_size, within_seconds=5, what="a log")
    with closing(SqliteStore(tmp_path / FILE)) as store:
        assert keys(store) == ["job-1"]
    assert os.listdir(tmp_path) == [FILE]  # noqa: PTH208 - names are what is asked about


PAGE = 4096


def test_the_histories_of_many_nodes_are_shortened_together(tmp_path: Path) -> None:
    nodes, length = [f"node-{n}" for n in range(70)], EVENTS_PER_NODE + 3
    ids = iter(range(1, len(nodes) * length + 1))
    events = [RegistryEvent(0.0, "said", node, {}, next(ids)) for node in nodes for _ in range(length)]
    path = tmp_path / "registry.db"
    with closing(SqliteStore(path)) as store:
        store.save([Batch([Change(DocumentKind.NODE, node, {}) for node in nodes], events)])
    with closing(sqlite3.connect(path)) as database:
        kept = database.execute("SELECT history, count(*), min(id) FROM events GROUP BY history").fetchall()
    newest = {node: (number + 1) * length for number, node in enumerate(nodes)}
    in_histories = {
        node: (node, EVENTS_PER_NODE, last - EVENTS_PER_NODE + 1) for node, last in newest.items()
    }
    assert {row[0]: row for row in kept if row[0] is not None} == in_histories


def filled(path: Path) -> bytes:
    with closing(SqliteStore(path)) as store:
        store.save([Batch([Change(DocumentKind.NODE, f"node-{n}", {"x": "y" * 500}) for n in range(50)])])
    return path.read_bytes()


def refused(path: Path) -> UnusableError:
    with pytest.raises(UnusableError) as caught, closing(SqliteStore(path)) as store:
        store.load()
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


def test_a_damaged_database_of_an_older_version_is_neither_copied_nor_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "registry.db"
    damaged = bytearray(filled(path))
    damaged[PAGE : PAGE + 200] = b"\xff" * 200
    path.write_bytes(damaged)
    monkeypatch.setattr(sqlite_file, "VERSION", 2)
    monkeypatch.setattr(sqlite_file, "MIGRATIONS", {1: ()})
    with pytest.raises(UnusableError, match="damaged"):
        sqlite_file.open_database(path)
    assert path.read_bytes() == damaged
    assert not path.with_name("registry.db.v1").exists()


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
    sqlite_file.open_database(path).close()
    with (
        closing(sqlite3.connect(path)) as upgraded,
        closing(sqlite3.connect(tmp_path / "registry.db.v1")) as stored_before,
    ):
        assert upgraded.execute("PRAGMA user_version").fetchone() == (2,)
        assert stored_before.execute("PRAGMA user_version").fetchone() == (1,)
        assert stored_before.execute("SELECT count(*) FROM documents").fetchone() == (50,)


def test_a_directory_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="name a file"):
        sqlite_file.open_database(tmp_path)


def test_a_place_that_cannot_be_written_is_told_with_the_next_step() -> None:
    with pytest.raises(StoreError, match="check the owner"):
        sqlite_file.open_database(Path("/proc/none/registry.db"))


def test_a_copy_never_replaces_what_is_there_unless_asked(tmp_path: Path) -> None:
    path, target = tmp_path / "registry.db", tmp_path / "copy.db"
    filled(path)
    target.write_text("precious")
    with pytest.raises(StoreError, match="there already"):
        sqlite_file.copy_database(path, target)
    assert target.read_text() == "precious"
    sqlite_file.copy_database(path, target, overwrite=True)
    assert target.stat().st_mode & 0o777 == 0o600
    with closing(SqliteStore(target)) as copy:
        assert len(copy.load().changes) == 50


def test_a_copy_that_finds_no_room_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    filled(path)
    with mounted(tmp_path / "disk", kib=256) as disk:
        Ballast(disk).fill()
        with pytest.raises(StoreError, match="free some space"):
            sqlite_file.copy_database(path, disk / "copy.db")
        assert os.listdir(disk) == ["ballast"]  # noqa: PTH208 - names are what is asked about


def test_a_database_on_a_full_disk_is_not_taken_for_a_damaged_one(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", kib=1024) as disk:
        filled(disk / "registry.db")
        Ballast(disk).fill()
        with pytest.raises(StoreError, match="disk") as caught:
            sqlite_file.open_database(disk / "registry.db")
        assert not isinstance(caught.value, UnusableError)


def test_a_disk_that_may_only_be_read_is_told_with_the_next_step(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", kib=1024) as disk:
        filled(disk / "registry.db")
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with pytest.raises(StoreError, match="Read-only file system; check the owner"):
            sqlite_file.open_database(disk / "registry.db")


@pytest.fixture
def database() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as database:
        yield database


def test_a_new_database_says_whose_it_is_and_of_which_version(database: sqlite3.Connection) -> None:
    sqlite_schema.prepare_schema(database, "registry.db")
    assert database.execute("PRAGMA application_id").fetchone() == (sqlite_schema.APPLICATION_ID,)
    assert database.execute("PRAGMA user_version").fetchone() == (sqlite_schema.VERSION,)
    sqlite_schema.prepare_schema(database, "registry.db")


def test_a_newer_version_is_refused_untouched_with_the_next_step(database: sqlite3.Connection) -> None:
    sqlite_schema.prepare_schema(database, "registry.db")
    database.execute("PRAGMA user_version = 99")
    before = list(database.iterdump())
    with pytest.raises(StoreError, match=r"registry\.db .* newer release .* restore"):
        sqlite_schema.prepare_schema(database, "registry.db")
    assert list(database.iterdump()) == before


def test_somebody_elses_database_is_refused_untouched(database: sqlite3.Connection) -> None:
    database.execute("CREATE TABLE theirs (a)")
    with pytest.raises(StoreError, match="not a registry's"):
        sqlite_schema.prepare_schema(database, "registry.db")
    assert [name for (name,) in database.execute("SELECT name FROM sqlite_schema")] == ["theirs"]


PATH = Path("/srv/registry.db")


class Named(sqlite3.OperationalError):
    """An error as SQLite names it; only the library itself can make a true one."""

    def __init__(self, name: str) -> None:
        super().__init__("what SQLite says")
        self.sqlite_errorname = name


@pytest.mark.parametrize(
    ("name", "next_step"),
    [
        ("SQLITE_FULL", "free some space"),
        ("SQLITE_IOERR_FSYNC", "system's log"),
        ("SQLITE_IOERR_LOCK", "disk of this machine"),
        ("SQLITE_PROTOCOL", "disk of this machine"),
        ("SQLITE_BUSY_SNAPSHOT", "end whatever else"),
        ("SQLITE_READONLY_DIRECTORY", "permissions"),
        ("SQLITE_CANTOPEN", "permissions"),
        ("SQLITE_INTERNAL", "report it"),
    ],
)
def test_a_fault_of_the_machine_is_told_with_the_next_step(name: str, next_step: str) -> None:
    error = database_error(PATH, Named(name))
    assert type(error) is StoreError
    assert str(PATH) in str(error)
    assert next_step in str(error)


@pytest.mark.parametrize("name", ["SQLITE_CORRUPT_INDEX", "SQLITE_NOTADB"])
def test_what_is_damaged_has_to_be_fixed_by_a_person(name: str) -> None:
    error = database_error(PATH, Named(name))
    assert isinstance(error, UnusableError)
    assert "restore FILE" in str(error)


@pytest.mark.parametrize(
    ("number", "next_step"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EACCES, "permissions"),
        (errno.ENOLCK, "disk of this machine"),
    ],
)
def test_a_fault_of_the_file_system_is_told_with_the_next_step(number: int, next_step: str) -> None:
    assert next_step in str(database_error(PATH, OSError(number, "what the system says")))


def test_damage_is_told_in_one_line() -> None:
    assert "page 2: odd" in str(damaged_database(PATH, "page 2:\nodd"))
