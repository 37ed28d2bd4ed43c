import logging
import os
import threading
from pathlib import Path

import pytest

from gpu_agent.node.credentials import Credentials, read_token_file
from gpu_agent.node.identity import IdentityFile
from gpu_agent.session.types import Credential
from tests.waiting import patience


def _credentials(folder: Path, *, node_token: str | None, join_token: bytes | None) -> Credentials:
    identity = IdentityFile(folder)
    identity.save("node-A", node_token)
    file = folder / "join"
    if join_token is not None:
        file.write_bytes(join_token)
        file.chmod(0o600)
    return Credentials(identity, file)


def test_the_node_token_is_best_and_the_join_token_serves_before_it(tmp_path: Path) -> None:
    both = _credentials(tmp_path, node_token="node-s3cret", join_token=b"join-s3cret\n")
    assert both.token_for(Credential.BEST) == "node-s3cret"
    assert both.token_for(Credential.JOIN) == "join-s3cret"


def test_before_there_is_a_node_token_the_join_token_is_best(tmp_path: Path) -> None:
    fresh = _credentials(tmp_path, node_token=None, join_token=b"join-s3cret")
    assert fresh.token_for(Credential.BEST) == "join-s3cret"


def test_without_any_file_nothing_is_sent(tmp_path: Path) -> None:
    assert Credentials(IdentityFile(tmp_path)).token_for(Credential.BEST) is None


def test_a_join_token_of_the_settings_serves_where_no_file_is_named(tmp_path: Path) -> None:
    identity = IdentityFile(tmp_path)
    (tmp_path / "join").write_bytes(b"of-the-file")
    assert Credentials(identity, None, "of-the-settings\n").token_for(Credential.BEST) == "of-the-settings"
    both = Credentials(identity, tmp_path / "join", "of-the-settings")
    assert both.token_for(Credential.BEST) == "of-the-file"
    assert "of-the-settings" not in repr(both)


def test_a_token_of_the_settings_that_is_none_is_never_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert Credentials(IdentityFile(tmp_path), None, "two\nlines").token_for(Credential.JOIN) is None
    (record,) = caplog.records
    assert record.getMessage() == "join_token_unreadable"
    assert "lines" not in str(record.__dict__["fields"])


def test_a_join_token_that_cannot_be_read_is_named_with_the_next_step_until_it_can(tmp_path: Path) -> None:
    credentials = _credentials(tmp_path, node_token=None, join_token=None)
    assert credentials.token_for(Credential.BEST) is None
    assert f"{tmp_path}/join: No such file or directory. Put the token there" in str(credentials.problem)
    (tmp_path / "join").write_text(" \n")
    credentials.token_for(Credential.BEST)
    assert "it holds no token" in str(credentials.problem)
    (tmp_path / "join").write_text("s3cret\n")
    (tmp_path / "join").chmod(0o600)
    assert credentials.token_for(Credential.BEST) == "s3cret"
    assert credentials.problem is None


def test_a_node_token_needs_no_join_token(tmp_path: Path) -> None:
    credentials = _credentials(tmp_path, node_token="node-s3cret", join_token=None)
    assert credentials.token_for(Credential.BEST) == "node-s3cret"
    assert credentials.problem is None


def test_a_replaced_join_token_counts_at_the_next_handshake(tmp_path: Path) -> None:
    credentials = _credentials(tmp_path, node_token=None, join_token=b"old")
    assert credentials.token_for(Credential.BEST) == "old"
    (tmp_path / "join").write_bytes(b"new")
    assert credentials.token_for(Credential.BEST) == "new"


@pytest.mark.parametrize("content", [None, b"", b"  \n", b"two\nlines", "schlüssel".encode(), b"\x00"])
def test_what_is_no_token_is_not_sent_and_never_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes | None
) -> None:
    credentials = _credentials(tmp_path, node_token=None, join_token=content)
    with caplog.at_level(logging.WARNING):
        assert credentials.token_for(Credential.JOIN) is None
    (record,) = caplog.records
    assert record.getMessage() == "join_token_unreadable"
    assert "lines" not in str(record.__dict__["fields"])


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
def test_a_join_token_that_every_user_may_read_is_used_and_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    credentials = _credentials(tmp_path, node_token=None, join_token=b"join-s3cret")
    file = tmp_path / "join"
    warnings = []
    for mode in (0o600, 0o440, 0o644):
        file.chmod(mode)
        assert credentials.token_for(Credential.BEST) == "join-s3cret"
        warnings.append([vars(one)["fields"] for one in caplog.records])
    assert warnings == [[], [], [{"file": str(file), "mode": "0644"}]]
    file.rename(tmp_path / "mounted")
    file.symlink_to(tmp_path / "mounted")
    assert credentials.token_for(Credential.BEST) == "join-s3cret"
    assert len(caplog.records) == 1


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this platform has no named pipes")
def test_a_pipe_without_a_writer_delays_an_attempt_briefly(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "join", 0o600)
    held = read_token_file(tmp_path / "join")
    assert (held.token, held.problem) == (None, "it holds no token")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this platform has no named pipes")
def test_a_pipe_hands_a_token_on(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "join", 0o600)
    writer = threading.Thread(target=(tmp_path / "join").write_text, args=("join-s3cret\n",))
    writer.start()
    held = read_token_file(tmp_path / "join")
    writer.join(patience(5))
    assert held.token == "join-s3cret"
