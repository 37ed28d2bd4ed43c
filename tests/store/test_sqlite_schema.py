import sqlite3
from collections.abc import Iterator
from contextlib import closing

import pytest

from gpu_agent.store import sqlite_schema
from gpu_agent.store.base import StoreError


@pytest.fixture
def database() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as database:
        yield database


def test_a_new_database_says_whose_it_is_and_of_which_version(database: sqlite3.Connection) -> None:
    sqlite_schema.prepare(database, "registry.db")
    assert database.execute("PRAGMA application_id").fetchone() == (sqlite_schema.APPLICATION_ID,)
    assert database.execute("PRAGMA user_version").fetchone() == (sqlite_schema.VERSION,)
    sqlite_schema.prepare(database, "registry.db")


def test_a_newer_version_is_refused_untouched_with_the_next_step(database: sqlite3.Connection) -> None:
    sqlite_schema.prepare(database, "registry.db")
    database.execute("PRAGMA user_version = 99")
    before = list(database.iterdump())
    with pytest.raises(StoreError, match=r"registry\.db .* newer release .* restore"):
        sqlite_schema.prepare(database, "registry.db")
    assert list(database.iterdump()) == before


def test_somebody_elses_database_is_refused_untouched(database: sqlite3.Connection) -> None:
    database.execute("CREATE TABLE theirs (a)")
    with pytest.raises(StoreError, match="not a registry's"):
        sqlite_schema.prepare(database, "registry.db")
    assert [name for (name,) in database.execute("SELECT name FROM sqlite_schema")] == ["theirs"]
