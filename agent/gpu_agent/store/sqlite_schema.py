"""The tables of a registry's database, their version, and the way from one version to the next.

A release reads every version up to its own and refuses a newer one untouched. Opens nothing.
"""

import sqlite3
from collections.abc import Mapping, Sequence

from gpu_agent.store.base import UnusableError

APPLICATION_ID = 0x67707561
"""Says that a database is a registry's ("gpua")."""

VERSION = 1

# `history` is the node whose history an event belongs to; what belongs to none goes when it is old.
# `probes` is written to see whether anything can be written; it holds nothing.
_TABLES = (
    """CREATE TABLE documents (
        kind TEXT NOT NULL, key TEXT NOT NULL, document TEXT NOT NULL,
        PRIMARY KEY (kind, key))""",
    """CREATE TABLE events (
        id INTEGER PRIMARY KEY, at REAL NOT NULL, event TEXT NOT NULL, node_id TEXT, fields TEXT NOT NULL,
        history TEXT)""",
    "CREATE TABLE probes (id INTEGER PRIMARY KEY, filler BLOB NOT NULL)",
    "CREATE INDEX events_by_history ON events (history, id)",
)

MIGRATIONS: Mapping[int, Sequence[str]] = {}
"""By the version they start from: the statements that lead to the next one."""


def prepare(database: sqlite3.Connection, path: str) -> None:
    """Make the tables, or bring them up to date; raises `UnusableError` for what is not ours or too new."""
    if _is_empty(database):
        _run(database, _TABLES, version=VERSION)
        return
    recognise(database, path)
    for version in range(_pragma(database, "user_version"), VERSION):
        _run(database, MIGRATIONS[version], version=version + 1)


def recognise(database: sqlite3.Connection, path: str) -> None:
    """Raise `UnusableError` unless this is a registry's database that this release can read."""
    if _pragma(database, "application_id") != APPLICATION_ID:
        raise UnusableError(
            f"{path} is a database, but not a registry's; nothing was changed in it: name another file "
            "with --store sqlite:///PATH"
        )
    version = _pragma(database, "user_version")
    if version > VERSION:
        raise UnusableError(
            f"{path} was written by a newer release (its version is {version}, this release knows up to "
            f"{VERSION}); nothing was changed in it: use the newer release, or put back a backup from before "
            "the upgrade with `gpu-agent registry restore FILE`"
        )


def older_version(database: sqlite3.Connection) -> int | None:
    """Return the version of a registry's database that is to be brought up to date; None for any other."""
    version = _pragma(database, "user_version")
    is_ours = _pragma(database, "application_id") == APPLICATION_ID
    return version if is_ours and version < VERSION else None


def _is_empty(database: sqlite3.Connection) -> bool:
    tables = database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    return tables == 0 and _pragma(database, "application_id") == 0


def _run(database: sqlite3.Connection, statements: Sequence[str], *, version: int) -> None:
    database.execute("BEGIN IMMEDIATE")
    with database:
        for statement in statements:
            database.execute(statement)
        database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        database.execute(f"PRAGMA user_version = {version}")


def _pragma(database: sqlite3.Connection, name: str) -> int:
    return int(database.execute(f"PRAGMA {name}").fetchone()[0])
