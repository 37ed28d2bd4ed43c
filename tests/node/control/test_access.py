import grp
import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from gpu_agent.node.control.access import (
    AccessPolicy,
    Peer,
    SocketUnavailableError,
    group_id,
    listen,
    peer_credentials,
)
from tests.node.control_harness import reachable_folder
from tests.node.other_user import GID, UID, needs_root, output_of, started

HOUSE = AccessPolicy(uid=900, group=800, operators=700)


def peer(uid: int, *groups: int) -> Peer:
    return Peer(uid, frozenset(groups), pid=1)


@pytest.mark.parametrize(
    ("who", "looks", "orders"),
    [
        (peer(0), True, True),
        (peer(900, 1), True, True),
        (peer(5, 800), True, False),
        (peer(5, 4, 700), True, True),
        (peer(5, 4), False, False),
        (peer(800, 900), False, False),
    ],
    ids=["root", "the agent's own user", "a member", "an operator", "a other", "numbers mixed up"],
)
def test_the_policy_by_user_and_group(who: Peer, looks: bool, orders: bool) -> None:  # noqa: FBT001 - a table
    assert (HOUSE.may_read(who), HOUSE.may_operate(who)) == (looks, orders)


def test_without_a_group_of_operators_only_root_and_the_own_user_give_orders() -> None:
    house = AccessPolicy(uid=900, group=800)
    assert not house.may_operate(peer(5, 800, 700))
    assert house.may_operate(peer(900))


def test_the_kernel_identifies_the_caller() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs:
        found = peer_credentials(ours)
    assert found is not None
    assert (found.uid, found.pid) == (os.geteuid(), os.getpid())
    assert set(os.getgroups()) <= found.groups


def test_what_is_no_local_socket_has_no_peer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        found = peer_credentials(listener)
    assert found is None or found.pid is None


@needs_root
def test_another_user_is_known_with_all_his_groups() -> None:
    connect = "import socket, sys; s = socket.socket(1); s.connect(sys.argv[1]); s.recv(1)"
    with reachable_folder() as folder, socket.socket(socket.AF_UNIX) as listener:
        path = folder / "s"
        listener.bind(str(path))
        path.chmod(0o666)
        listener.listen()
        caller = started(connect, str(path), groups=(54323, 54324))
        with listener.accept()[0] as connection:
            found = peer_credentials(connection)
        output_of(caller)
    assert found == Peer(UID, frozenset({GID, 54323, 54324}), caller.pid)


HOLD = (
    "import pathlib, sys\nfrom gpu_agent.node.control.access import listen\n"
    "with listen(pathlib.Path(sys.argv[1])):\n    print('listens', flush=True)\n    sys.stdin.read()"
)


def refused(path: Path, *, group: int | None = None) -> str:
    with pytest.raises(SocketUnavailableError) as why, listen(path, group=group):
        pytest.fail("it listens")
    return str(why.value)


def test_it_is_open_to_its_user_and_group_alone_and_gone_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with listen(path):
        assert stat.S_IMODE(path.lstat().st_mode) == 0o660
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
    assert not path.exists()


def test_a_missing_folder_is_created_and_closed_to_other_users(tmp_path: Path) -> None:
    with listen(tmp_path / "run" / "s"):
        assert stat.S_IMODE((tmp_path / "run").stat().st_mode) & 0o027 == 0


def test_what_a_killed_agent_left_behind_is_cleared_away(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "listens\n"
        said = refused(path)
        assert f"another agent (process {first.pid}) listens" in said
        first.send_signal(signal.SIGKILL)
    assert path.exists()
    with listen(path):
        pass


def test_the_socket_of_another_program_that_lives_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        assert "another program listens" in refused(path)
        assert path.exists()


def test_a_living_program_with_a_full_backlog_is_no_dead_one(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        listener.bind(str(path))
        listener.listen(0)
        client.connect(str(path))
        assert "another program listens" in refused(path)


def test_links_and_files_in_the_way_are_not_touched(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "precious")
    (tmp_path / "nowhere").symlink_to(tmp_path / "not-there")
    assert "is a link; move it away" in refused(tmp_path / "link")
    assert "is a link; move it away" in refused(tmp_path / "nowhere")
    assert "is no socket; move it away" in refused(tmp_path / "precious")
    assert (tmp_path / "precious").read_text() == "x"
    assert not (tmp_path / "not-there").exists()


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o770])
def test_a_folder_where_others_may_write_is_refused(tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(mode)
    assert (
        f"others could put a socket of their own: other users may write there (mode {mode:04o})"
        in refused(folder / "s")
    )


@needs_root
def test_what_belongs_to_another_user_is_refused(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    os.chown(theirs, UID, GID)
    assert f"it belongs to user {UID}" in refused(theirs / "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
    os.chown(tmp_path / "s", UID, GID)
    assert f"is a socket of user {UID}, and this is user {os.geteuid()}" in refused(tmp_path / "s")


@needs_root
def test_a_group_that_the_user_is_no_member_of_is_a_sentence() -> None:
    program = (
        "import pathlib\nfrom gpu_agent.node.control.access import SocketUnavailableError, listen\n"
        "try:\n    with listen(pathlib.Path(sys.argv[1]), group=7): print('listens')\n"
        "except SocketUnavailableError as error: print(error)"
    )
    with reachable_folder() as folder:
        os.chown(folder, UID, GID)
        caller = started(program, str(folder / "s"), also_load="gpu_agent.node.control.access")
        assert "cannot be given to group 7: the agent's user is no member of it" in output_of(caller)
        assert not (folder / "s").exists()


@needs_root
def test_it_is_given_to_the_group_that_was_asked_for(tmp_path: Path) -> None:
    with listen(tmp_path / "s", group=54322):
        assert (tmp_path / "s").lstat().st_gid == 54322


def test_a_path_of_any_length_will_do(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 100) / ("y" * 100) / "agent.sock"
    with listen(path):
        assert stat.S_ISSOCK(path.lstat().st_mode)
    with listen(path):
        pass


def test_a_place_that_can_be_none_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "cannot be used" in refused(tmp_path / "file" / "s")
    assert "cannot be" in refused(tmp_path / ("x" * 300))


def test_a_replaced_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with listen(path):
        path.unlink()
        path.write_text("another program's")
    assert path.read_text() == "another program's"


def test_a_group_is_found_by_name_or_number() -> None:
    ours = grp.getgrgid(os.getgid())
    assert group_id(ours.gr_name, "socket_group") == ours.gr_gid
    assert group_id("54321", "socket_group") == 54321
    assert group_id(None, "socket_group") is None


def test_a_group_that_is_not_there_is_a_sentence_with_its_setting() -> None:
    with pytest.raises(SocketUnavailableError, match=r"no group 'nobodies-own'.*socket_operators"):
        group_id("nobodies-own", "socket_operators")
