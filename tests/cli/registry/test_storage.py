import json
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from gpu_agent.cli.main import main
from gpu_agent.registry.actions import Change, DocumentKind
from gpu_agent.store.backup import inspect_backup
from gpu_agent.store.base import Batch
from gpu_agent.store.sqlite import SqliteStore
from tests.cli.conftest import Served
from tests.programs import Agent, Registry


@pytest.fixture
def former(tmp_path: Path) -> Iterator[Registry]:
    with (
        Registry("--store", f"sqlite://{tmp_path / 'registry.db'}", "--allow-simulated") as registry,
        Agent(registry.node_url, tmp_path / "agent"),
    ):
        registry.await_ready(1, within_seconds=20)
        yield registry


def test_a_backup_is_written_for_its_owner_alone_and_says_what_it_holds(
    former: Registry, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "copy.db"
    assert main(["registry", "backup", str(target), "--server", former.api]) == 0
    assert "1 node, 0 claims" in capsys.readouterr().out
    assert target.stat().st_mode & 0o777 == 0o600
    assert inspect_backup(target).nodes == 1
    assert [path.name for path in tmp_path.glob(".copy*")] == []


def test_a_file_that_is_there_is_replaced_only_when_reported_so(
    former: Registry, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "copy.db"
    target.write_text("precious")
    assert main(["registry", "backup", str(target), "--server", former.api]) == 4
    assert "--force" in capsys.readouterr().err
    assert target.read_text() == "precious"
    assert main(["registry", "backup", str(target), "--force", "--json", "--server", former.api]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["file"], document["nodes"], inspect_backup(target).nodes) == (str(target), 1, 1)


def test_a_folder_that_cannot_be_written_is_reported(
    served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["registry", "backup", "/nowhere/copy.db", "--server", served.api]) == 4
    assert "/nowhere/copy.db" in capsys.readouterr().err


def test_a_registry_without_a_database_says_so(
    served: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["registry", "backup", str(tmp_path / "copy.db"), "--server", served.api]) == 6
    assert "memory only" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@contextmanager
def answering(body: bytes, *, length: int) -> Iterator[str]:
    """A server that promises so many bytes, sends others, and hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                head = f"HTTP/1.1 200 OK\r\nContent-Type: application/vnd.sqlite3\r\nContent-Length: {length}"
                connection.sendall(f"{head}\r\n\r\n".encode() + body)
                connection.shutdown(socket.SHUT_WR)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread.join()


@pytest.mark.parametrize(
    ("length", "code", "words"), [(5000, 5, "IncompleteRead"), (2000, 1, "no complete backup")]
)
def test_what_does_not_come_whole_is_no_backup(
    length: int, code: int, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "copy.db"
    with answering(b"x" * 2000, length=length) as api:
        assert main(["registry", "backup", str(target), "--server", api]) == code
    assert words in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def backup(tmp_path: Path) -> Path:
    with closing(SqliteStore(tmp_path / "backup.db")) as store:
        store.save([Batch([Change(DocumentKind.NODE, "node-1", {})])])
    return tmp_path / "backup.db"


def test_a_backup_is_put_in_place_with_the_next_step(
    backup: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = tmp_path / "state"
    assert main(["registry", "restore", str(backup), "--state-dir", str(state)]) == 0
    said = capsys.readouterr().out
    assert f"{state / 'registry.db'}: 1 node, 0 claims" in said
    assert "Start the registry" in said
    assert "is valid again" in said  # what was revoked since


def test_a_database_that_is_there_is_renamed_and_replaced_only_by_force(
    backup: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["registry", "restore", str(backup), "--state-dir", str(tmp_path)]
    assert main(words) == 0
    assert main(words) == 4
    assert "--force" in capsys.readouterr().err
    assert main([*words, "--force"]) == 0
    (former,) = tmp_path.glob("registry.db.replaced-*")
    assert f"is now {former}" in capsys.readouterr().out
    assert main([*words, "--force", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["file"], document["nodes"]) == (str(tmp_path / "registry.db"), 1)
    assert Path(document["replaced"]).exists()


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
def test_a_slot_that_is_none_is_reported(
    words: list[str], code: int, hint: str, backup: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["registry", "restore", str(backup), *words]) == code
    assert hint in capsys.readouterr().err
