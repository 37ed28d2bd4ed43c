import os
from pathlib import Path

import pytest

from gpu_agent.cli.outcome import ExitCode, Failure
from gpu_agent.cli.registry.secret_file import secret_file


def test_a_secret_is_its_owners_alone_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "join.token"
    path.write_text("old")
    path.chmod(0o644)
    before = os.umask(0)
    try:
        with secret_file(path) as write:
            write("gpuj_x")
    finally:
        os.umask(before)
    assert path.read_text() == "gpuj_x\n"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_a_secret_that_was_not_made_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "join.token"
    path.write_text("old")
    with pytest.raises(RuntimeError), secret_file(path):
        raise RuntimeError("refused")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_no_place_for_it_is_told_before_it_is_made(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="--out FILE") as failed, secret_file(tmp_path / "nowhere" / "t"):
        pytest.fail("the block was entered")
    assert failed.value.code is ExitCode.CONFIGURATION


def test_a_folder_in_its_place_is_told(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="--out FILE"), secret_file(tmp_path) as write:
        write("gpuj_x")
    assert list(tmp_path.iterdir()) == []
