import errno
import sqlite3
from pathlib import Path

import pytest

from gpu_agent.store.base import StoreError, UnusableError
from gpu_agent.store.sqlite_faults import damage, fault

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
    error = fault(PATH, Named(name))
    assert type(error) is StoreError
    assert str(PATH) in str(error)
    assert next_step in str(error)


@pytest.mark.parametrize("name", ["SQLITE_CORRUPT_INDEX", "SQLITE_NOTADB"])
def test_what_is_damaged_has_to_be_mended_by_a_person(name: str) -> None:
    error = fault(PATH, Named(name))
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
    assert next_step in str(fault(PATH, OSError(number, "what the system says")))


def test_damage_is_told_in_one_line() -> None:
    assert "page 2: odd" in str(damage(PATH, "page 2:\nodd"))
