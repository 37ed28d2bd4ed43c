"""The files that begin first, as they are called now."""

from pathlib import Path

from tests.conftest import LONG_FILES


def test_every_file_that_begins_first_exists() -> None:
    missing = [name for name in LONG_FILES if not (Path(__file__).parent / name).is_file()]
    assert not missing
