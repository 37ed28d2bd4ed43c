import errno
import json
import os
import stat
import threading
from pathlib import Path

import pytest

from gpu_agent.node.identity import (
    DISK_SECONDS,
    FILE,
    Identity,
    IdentityError,
    IdentityFile,
    default_state_dir,
    load_identity,
    lock_state_dir,
    read_identity,
    store_identity,
    with_disk_deadline,
)
from gpu_agent.session.types import ArchiveIdentity, StoreIdentity


def test_a_new_directory_has_no_identity(tmp_path: Path) -> None:
    assert IdentityFile(tmp_path).load().identity == Identity()


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    IdentityFile(tmp_path).save("node-A", "s3cret")
    assert IdentityFile(tmp_path).load().identity == Identity("node-A", "s3cret")


def test_only_its_owner_can_read_it(tmp_path: Path) -> None:
    with lock_state_dir(tmp_path / "state") as file:
        file.save("node-A", "s3cret")
        assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
        assert stat.S_IMODE(file.folder.stat().st_mode) == 0o700


def test_a_file_that_others_may_read_is_closed_when_it_is_loaded(tmp_path: Path) -> None:
    file = IdentityFile(tmp_path)
    file.save("node-A", "s3cret")
    file.path.chmod(0o644)
    assert IdentityFile(tmp_path).load().identity.node_id == "node-A"
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600


def test_an_ack_without_a_token_leaves_the_old_token(tmp_path: Path) -> None:
    file = IdentityFile(tmp_path)
    file.save("node-A", "s3cret")
    file.save("node-A", None)
    assert file.identity == Identity("node-A", "s3cret")


def test_a_token_does_not_outlive_the_id_it_proves(tmp_path: Path) -> None:
    file = IdentityFile(tmp_path)
    file.save("node-A", "s3cret")
    file.save("node-B", None)
    assert IdentityFile(tmp_path).load().identity == Identity("node-B", None)


def test_nothing_is_written_when_nothing_changed(tmp_path: Path) -> None:
    file = IdentityFile(tmp_path)
    file.save("node-A", None)
    before = file.path.stat().st_ino
    file.save("node-A", None)
    assert file.path.stat().st_ino == before


def test_a_file_that_was_removed_meanwhile_is_written_again(tmp_path: Path) -> None:
    file = IdentityFile(tmp_path)
    file.save("node-A", None)
    file.path.unlink()
    file.save("node-A", None)
    assert file.path.exists()


def test_a_token_is_shown_in_no_repr() -> None:
    assert "s3cret" not in repr(Identity("node-A", "s3cret"))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe\x00",
        b"[" * 60_000,
        b'{"format": 2, "node_id": "node-A"}',
        b'{"format": 1, "node_id": 7}',
        b'{"format": 1, "node_id": "../../etc/passwd"}',
        b'{"format": 1, "node_id": "node-A", "node_token": "two\\nlines"}',
    ],
)
def test_a_corrupt_file_is_moved_aside_with_its_reason(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE).write_bytes(content)
    loaded = IdentityFile(tmp_path).load()
    assert loaded.identity == Identity()
    assert loaded.moved_to == tmp_path / f"{FILE}.corrupt-1"
    assert loaded.moved_to.read_bytes() == content
    assert loaded.reason
    assert not (tmp_path / FILE).exists()


def test_corrupt_files_never_overwrite_each_other(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        (tmp_path / FILE).write_text("x")
        assert IdentityFile(tmp_path).load().moved_to == tmp_path / f"{FILE}.corrupt-{number}"


def test_the_newest_five_corrupt_files_stay(tmp_path: Path) -> None:
    for number in range(1, 13):
        (tmp_path / FILE).write_text(f"x{number}")
        assert IdentityFile(tmp_path).load().moved_to == tmp_path / f"{FILE}.corrupt-{number}"
    copies = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert copies == {f"{FILE}.corrupt-{number}": f"x{number}" for number in range(8, 13)}


def test_the_newest_five_archived_identities_stay_and_nothing_else_changes(tmp_path: Path) -> None:
    others = [f"{FILE}.corrupt-1", f"{FILE}.conflict-1.bak", f"{FILE}.conflict-x", f"{FILE}.conflict-0"]
    for name in others:
        (tmp_path / name).touch()
    file = IdentityFile(tmp_path)
    for number in range(1, 13):
        file.save(f"node-{number}", None)
        assert file.archive_id() == tmp_path / f"{FILE}.conflict-{number}"
    copies = {path.name for path in tmp_path.iterdir()} - {FILE, *others}
    assert copies == {f"{FILE}.conflict-{number}" for number in range(8, 13)}
    assert all((tmp_path / name).exists() for name in others)


def test_a_directory_at_a_copys_path_does_not_prevent_archiving(tmp_path: Path) -> None:
    (tmp_path / f"{FILE}.conflict-1").mkdir()
    file = IdentityFile(tmp_path)
    for number in range(1, 8):
        file.save(f"node-{number}", None)
        assert file.archive_id()


def test_a_link_in_the_file_s_place_is_neither_read_nor_written_through(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / FILE).symlink_to(victim)
    file = IdentityFile(tmp_path)
    with pytest.raises(IdentityError, match="cannot be read"):
        file.load()
    file.save("node-A", None)
    assert victim.read_text() == "precious"
    assert not file.path.is_symlink()


def test_a_pipe_in_the_file_s_place_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / FILE)
    with pytest.raises(IdentityError, match="no regular file"):
        IdentityFile(tmp_path).load()


def test_archiving_leaves_the_token_and_a_copy_for_the_operator(tmp_path: Path) -> None:
    file = IdentityFile(tmp_path)
    file.save("node-A", "s3cret")
    copy = file.archive_id()
    assert copy == tmp_path / f"{FILE}.conflict-1"
    assert json.loads(copy.read_text())["node_id"] == "node-A"
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    assert IdentityFile(tmp_path).load().identity == Identity(None, "s3cret")
    file.save("node-B", None)
    assert file.identity == Identity("node-B", "s3cret")


def test_archiving_no_identity_leaves_no_copy(tmp_path: Path) -> None:
    assert IdentityFile(tmp_path).archive_id() is None
    assert list(tmp_path.iterdir()) == []


def test_nothing_half_written_is_left_behind(tmp_path: Path) -> None:
    file = IdentityFile(tmp_path)
    file.save("node-A", None)
    file.path.unlink()
    file.path.mkdir()
    with pytest.raises(IdentityError, match="cannot be written"):
        file.save("node-B", None)
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def blocked(file: IdentityFile) -> None:
    """Let nothing be written in the file's place."""
    file.path.unlink(missing_ok=True)
    file.path.mkdir()


def test_a_first_token_that_cannot_be_written_serves_the_process_and_is_written_once_it_can(
    tmp_path: Path,
) -> None:
    file = IdentityFile(tmp_path)
    blocked(file)
    with pytest.raises(IdentityError):
        file.save("node-A", "first")
    assert file.identity == Identity("node-A", "first")
    file.path.rmdir()
    file.save("node-A", None)
    assert IdentityFile(tmp_path).load().identity == Identity("node-A", "first")


def test_a_following_token_that_cannot_be_written_is_not_used_before_a_restart_would_find_it(
    tmp_path: Path,
) -> None:
    file = IdentityFile(tmp_path)
    file.save("node-A", "old")
    blocked(file)
    with pytest.raises(IdentityError):
        file.save("node-A", "new")
    assert file.identity == Identity("node-A", "old")


def test_the_lock_error_names_the_process_that_holds_it(tmp_path: Path) -> None:
    first = rf"process {os.getpid()}\).*--state-dir"
    with lock_state_dir(tmp_path), pytest.raises(IdentityError, match=first), lock_state_dir(tmp_path):
        pass
    with lock_state_dir(tmp_path):
        pass


def test_a_directory_that_cannot_be_created_is_an_error_with_the_next_step(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(IdentityError, match="--state-dir"), lock_state_dir(tmp_path / "file" / "state"):
        pass


def test_the_platform_has_a_place_for_it() -> None:
    assert default_state_dir().is_absolute()
    assert default_state_dir().name == "gpu-agent"


@pytest.mark.parametrize(
    ("number", "step"),
    [
        (errno.ENOSPC, "make room"),
        (errno.EROFS, "mount that disk for writing"),
        (errno.EISDIR, "move that directory away"),
        (errno.EACCES, "owner and permissions"),
    ],
    ids=["full", "read-only", "directory", "forbidden"],
)
def test_the_next_step_fits_what_the_disk_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, step: str
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "mkdir", refused)
    with pytest.raises(IdentityError, match=step), lock_state_dir(tmp_path / "state"):
        """Never reached."""


@pytest.mark.skipif(os.name != "posix", reason="owners and modes are POSIX's")
def test_a_directory_that_others_may_write_is_exposed(tmp_path: Path) -> None:
    assert IdentityFile(tmp_path).exposed is None
    tmp_path.chmod(0o755)
    assert IdentityFile(tmp_path).exposed is None
    tmp_path.chmod(0o1777)
    assert IdentityFile(tmp_path).exposed == "other users may write there (mode 1777)"


@pytest.mark.skipif(os.name != "posix", reason="hard links are POSIX's")
def test_the_mode_of_a_file_that_has_a_second_name_is_left_alone(tmp_path: Path) -> None:
    others_file = tmp_path / "others_file"
    others_file.write_text("{}")
    others_file.chmod(0o644)
    (tmp_path / FILE).hardlink_to(others_file)
    IdentityFile(tmp_path).load()
    assert stat.S_IMODE(others_file.stat().st_mode) == 0o644


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can give a link away")
def test_a_directory_behind_another_users_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    os.lchown(tmp_path / "link", 12345, 12345)
    with (
        pytest.raises(IdentityError, match="is a link that user 12345 has made"),
        lock_state_dir(tmp_path / "link"),
    ):
        pytest.fail("it was held")
    assert list((tmp_path / "there").iterdir()) == []


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can give a directory away")
def test_another_users_directory_is_exposed(tmp_path: Path) -> None:
    os.chown(tmp_path, 12345, 12345)
    assert IdentityFile(tmp_path).exposed == "it belongs to user 12345"


def test_reading_an_identity_changes_nothing_and_takes_no_lock(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_identity(tmp_path)
    IdentityFile(tmp_path).save("node-A", "s3cret")
    (tmp_path / FILE).chmod(0o644)
    assert read_identity(tmp_path) == Identity("node-A", "s3cret")
    assert stat.S_IMODE((tmp_path / FILE).stat().st_mode) == 0o644
    (tmp_path / FILE).write_text("[]")
    with pytest.raises(ValueError, match="format"):
        read_identity(tmp_path)
    assert os.listdir(tmp_path) == [FILE]  # noqa: PTH208 - names are enough


async def test_an_identity_is_stored_and_read_again(tmp_path: Path) -> None:
    with lock_state_dir(tmp_path) as identity:
        load_identity(identity)
        await store_identity(identity, StoreIdentity("node-1", "gpun_token"))
    with lock_state_dir(tmp_path) as identity:
        load_identity(identity)
        assert (identity.identity.node_id, identity.identity.node_token) == ("node-1", "gpun_token")


async def test_an_archived_identity_is_logged_with_its_copy(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "gpu_agent")
    with lock_state_dir(tmp_path) as identity:
        load_identity(identity)
        await store_identity(identity, StoreIdentity("node-1", None))
        await store_identity(identity, ArchiveIdentity("node-1"))
        assert identity.identity.node_id is None
    assert "identity_archived" in caplog.messages
    (record,) = [one for one in caplog.records if one.getMessage() == "identity_archived"]
    assert record.__dict__["fields"]["copy"] == str(tmp_path / f"{FILE}.conflict-1")


def test_a_corrupt_identity_is_logged_and_moved_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / FILE).write_text("{")
    with lock_state_dir(tmp_path) as identity:
        load_identity(identity)
        assert identity.identity.node_id is None
    assert "identity_corrupt" in caplog.messages


async def test_what_the_disk_answers_is_handed_on() -> None:
    assert await with_disk_deadline("identity", lambda: 7) == 7


async def test_a_disk_that_fails_is_logged_and_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def full() -> int:
        raise IdentityError("no space left on the device")

    assert await with_disk_deadline("identity", full) is None
    (record,) = [one for one in caplog.records if one.getMessage() == "disk_failed"]
    assert record.__dict__["fields"] == {"what": "identity", "problem": "no space left on the device"}


async def test_a_disk_that_hangs_holds_the_agent_up_for_so_long_only(
    caplog: pytest.LogCaptureFixture,
) -> None:
    free = threading.Event()
    assert await with_disk_deadline("identity", free.wait) is None
    free.set()
    (record,) = [one for one in caplog.records if one.getMessage() == "disk_failed"]
    assert record.__dict__["fields"]["problem"] == f"no answer within {DISK_SECONDS:g} s"
