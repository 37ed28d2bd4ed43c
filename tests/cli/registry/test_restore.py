import json
from contextlib import closing
from pathlib import Path

import pytest

from gpu_agent.cli.app import main
from gpu_agent.registry.actions import Change, Kept
from gpu_agent.store.base import Batch
from gpu_agent.store.sqlite import SqliteStore
from tests.programs import Registry


@pytest.fixture
def backup(tmp_path: Path) -> Path:
    with closing(SqliteStore(tmp_path / "backup.db")) as store:
        store.save([Batch([Change(Kept.NODE, "node-1", {})])])
    return tmp_path / "backup.db"


def test_a_backup_is_put_in_place_and_the_next_step_is_said(
    backup: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = tmp_path / "state"
    assert main(["registry", "restore", str(backup), "--state-dir", str(state)]) == 0
    said = capsys.readouterr().out
    assert f"{state / 'registry.db'}: 1 node, 0 claims" in said
    assert "Start the registry" in said
    assert "opens again" in said  # what was revoked since


def test_a_database_that_is_there_is_kept_and_goes_only_when_told_so(
    backup: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["registry", "restore", str(backup), "--state-dir", str(tmp_path)]
    assert main(words) == 0
    assert main(words) == 4
    assert "--force" in capsys.readouterr().err
    assert main([*words, "--force"]) == 0
    (kept,) = tmp_path.glob("registry.db.replaced-*")
    assert f"kept as {kept}" in capsys.readouterr().out
    assert main([*words, "--force", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["file"], told["nodes"]) == (str(tmp_path / "registry.db"), 1)
    assert Path(told["replaced"]).exists()


def test_while_the_registry_runs_nothing_is_changed_and_its_process_is_named(
    backup: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = f"sqlite://{tmp_path / 'registry.db'}"
    with Registry("--store", place) as registry:
        assert main(["registry", "restore", str(backup), "--store", place, "--force"]) == 1
        assert f"process {registry.pid}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "hint"),
    [
        (["--store", "memory"], 1, "keeps nothing on disk"),
        (["--store", "tape"], 4, "sqlite:///PATH"),
        (["--config", "/nowhere/registry.toml"], 4, "/nowhere"),
    ],
)
def test_a_place_that_is_none_is_told(
    words: list[str], code: int, hint: str, backup: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["registry", "restore", str(backup), *words]) == code
    assert hint in capsys.readouterr().err
