import json
from pathlib import Path

import pytest

from gpu_agent.cli.app import main
from gpu_agent.cli.schema import NAMES, schema_of


def test_all_schemas_are_printed_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == {name: schema_of(name) for name in NAMES}


def test_one_schema_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", "node_heartbeat"]) == 0
    assert json.loads(capsys.readouterr().out) == schema_of("node_heartbeat")


def test_an_unknown_name_is_refused_with_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", "node_teleport"]) == 4
    assert "node_register" in capsys.readouterr().err


def test_schemas_are_written_to_a_folder(tmp_path: Path) -> None:
    assert main(["schema", "--write", str(tmp_path)]) == 0
    assert {path.stem for path in tmp_path.iterdir()} == set(NAMES)


def test_a_folder_that_is_not_there_is_made(tmp_path: Path) -> None:
    assert main(["schema", "node_error", "--write", str(tmp_path / "a" / "b")]) == 0
    assert json.loads((tmp_path / "a" / "b" / "node_error.json").read_text()) == schema_of("node_error")


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert main(["schema", "--write", str(tmp_path / "file" / "below")]) == 1
    said = capsys.readouterr().err
    assert str(tmp_path / "file") in said
    assert "cannot be written (Not a directory)" in said
