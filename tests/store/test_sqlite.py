import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from gpu_agent.registry.actions import Change, Kept
from gpu_agent.store.base import Batch, Loaded, Store, StoreError, UnusableError
from gpu_agent.store.sqlite import SqliteStore
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
    return Batch([Change(Kept.NODE, f"node-{number}", {"filler": "x" * size})])


def save_one_after_another(store: Store, count: int) -> None:
    for number in range(2, count):
        store.save([node(number, 5000)])


def keys(store: Store) -> list[str]:
    return [change.key for change in store.load().changes]


def test_what_was_saved_is_there_when_the_file_is_opened_again(tmp_path: Path) -> None:
    first = SqliteStore(tmp_path / FILE)
    first.save([Batch([Change(Kept.NODE, "node-1", DOCUMENT)], [event(1), event(2, None)])])
    kept = first.load()
    first.close()
    with closing(SqliteStore(tmp_path / FILE)) as second:
        assert second.load() == kept


def test_what_save_returned_for_outlives_a_kill_at_that_moment(tmp_path: Path) -> None:
    program = """if True:
        import sys
        from pathlib import Path
        from gpu_agent.registry.actions import Change, Kept
        from gpu_agent.store.base import Batch
        from gpu_agent.store.sqlite import SqliteStore
        store = SqliteStore(Path(sys.argv[1]))
        for number in range(100_000):
            store.save([Batch([Change(Kept.CLAIM, f"job-{number}", {})])])
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
    told = [
        store._database.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")
    ]
    assert told == ["wal", 2]


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
        with pytest.raises(StoreError, match="disk is full"):
            store.probe()
        kept = keys(store)
        assert kept[0] == "node-1"
        ballast.throw_off()
        store.probe()
        store.save([node(1001, 5000)])
        assert keys(store) == [*kept, "node-1001"]


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
        with pytest.raises(StoreError, match="another process keeps it locked"):
            store.save([node(1)])
    store.save([node(1)])


def test_a_damaged_document_is_told_with_the_next_step_and_stays(store: SqliteStore) -> None:
    with closing(sqlite3.connect(store.path)) as other, other:
        other.execute("INSERT INTO documents VALUES ('node', 'a', 'no json')")
    with pytest.raises(UnusableError, match=r"registry\.db .*damaged.*restore"):
        store.load()


def test_a_backup_is_whole_while_others_save(store: SqliteStore, tmp_path: Path) -> None:
    store.save([Batch([Change(Kept.NODE, "node-1", DOCUMENT)], [event(1)])])
    target = tmp_path / "copy.db"
    store.backup(target)
    store.save([node(2)])
    assert sorted(path.name for path in tmp_path.glob("copy.db*")) == ["copy.db"]
    with closing(SqliteStore(target)) as copy:
        assert copy.load() == Loaded(
            [Change(Kept.NODE, "node-1", DOCUMENT)], [event(1)], {"node-1": [event(1)]}
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
    from gpu_agent.registry.actions import Change, Kept
    from gpu_agent.store.base import Batch
    from gpu_agent.store.sqlite import SqliteStore
    store = SqliteStore(Path(sys.argv[1]))
    store.save([Batch([Change(Kept.CLAIM, "job-1", {})])])
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
                store.probe()
            ballast.throw_off()
            store.probe()


def test_the_log_beside_the_file_is_taken_up_after_a_kill(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", SAVE_AND_DIE, str(tmp_path / FILE)], check=False)
    assert eventually(lambda: (tmp_path / f"{FILE}-wal").stat().st_size, within_seconds=5, what="a log")
    with closing(SqliteStore(tmp_path / FILE)) as store:
        assert keys(store) == ["job-1"]
    assert os.listdir(tmp_path) == [FILE]  # noqa: PTH208 - names are what is asked about
