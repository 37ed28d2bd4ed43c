import os
import socket

import pytest

from gpu_agent.node.socket.peer import House, Peer, own_uid, peer_of
from tests.node.an_agent import reachable_folder
from tests.node.another_user import GID, UID, needs_root, said, started

HOUSE = House(uid=900, group=800, operators=700)


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
    ids=["root", "the agent's own user", "a member", "an operator", "a stranger", "numbers mixed up"],
)
def test_who_may_do_what(who: Peer, looks: bool, orders: bool) -> None:  # noqa: FBT001 - a table
    assert (HOUSE.may_look(who), HOUSE.may_order(who)) == (looks, orders)


def test_without_a_group_of_operators_only_root_and_the_own_user_give_orders() -> None:
    house = House(uid=900, group=800)
    assert not house.may_order(peer(5, 800, 700))
    assert house.may_order(peer(900))


def test_the_kernel_says_who_has_connected() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs:
        found = peer_of(ours)
    assert found is not None
    assert (found.uid, found.pid) == (own_uid(), os.getpid())
    assert set(os.getgroups()) <= found.groups


def test_what_is_no_local_socket_has_no_peer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        found = peer_of(listener)
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
            found = peer_of(connection)
        said(caller)
    assert found == Peer(UID, frozenset({GID, 54323, 54324}), caller.pid)
