"""The control socket under programs of every kind: correct ones, other users, and attackers."""

import asyncio
import contextlib
import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from gpu_agent import local
from gpu_agent.local.connection import MAX_REQUEST_BYTES, Connection
from gpu_agent.node.control.access import open_control_socket
from gpu_agent.node.control.server import REST_RATIO, ControlLimits, FairQueue
from gpu_agent.node.settings import AgentSettings, load
from gpu_agent.node.snapshot import Snapshot
from tests.node.control_harness import FakeAgent, reachable_folder, serving
from tests.node.other_user import GID, UID, needs_root, output_of, started
from tests.programs import eventually
from tests.waiting import patience

STATUS = b'{"protocol": 1, "ask": "status"}\n'
REFUSED = 580
"""Together with the open ones fewer than a process may open by default."""
LIST = b'{"protocol": 1, "ask": "job_list"}\n'
ASK = (
    "import socket, sys\ns = socket.socket(1)\ns.connect(sys.argv[1])\n"
    "try: s.sendall(sys.argv[2].encode() + b'\\n')\nexcept BrokenPipeError: pass\n"
    "print(s.makefile().readline())"
)


@contextmanager
def raw(path: Path) -> Iterator[socket.socket]:
    """A connection that may say what it likes."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(str(path))
        yield connection


def reply(connection: socket.socket) -> dict[str, Any]:
    line = b""
    while not line.endswith(b"\n"):
        more = connection.recv(65536)
        assert more, line
        line += more
    return dict(json.loads(line))


def ends(connection: socket.socket) -> bool:
    """Whether the agent ends it, unread answers aside."""
    try:
        while connection.recv(65536):
            pass
    except ConnectionResetError:
        return True
    return True


def test_requests_are_answered_in_their_order(tmp_path: Path) -> None:
    with serving(tmp_path / "s") as served, raw(served.path) as connection:
        connection.sendall(STATUS + b'{"protocol": 1, "ask": "dance"}\n' + STATUS)
        assert reply(connection)["ok"]
        assert reply(connection)["code"] == "unknown_question"
        assert reply(connection)["ok"]


def test_a_job_ends_with_the_connection_that_announced_it(tmp_path: Path) -> None:
    with serving(tmp_path / "s") as served:
        with Connection(served.path) as worker:
            worker.ask("job_start", job_id="job-1")
            assert served.agent.jobs.ids == ("job-1",)
        eventually(lambda: served.agent.jobs.ids == (), within_seconds=5, what="no job in flight")


def test_a_worker_may_be_silent_and_a_slow_caller_may_not(tmp_path: Path) -> None:
    limits = ControlLimits(question_seconds=0.1)
    with serving(tmp_path / "s", limits=limits) as served, Connection(served.path) as worker:
        worker.ask("job_start", job_id="job-1")
        with raw(served.path) as slow:
            slow.sendall(b'{"protocol": 1, "a')
            assert ends(slow)
        assert worker.ask("job_list")["in_flight"][0]["job_id"] == "job-1"


@pytest.mark.parametrize(
    "words", [b"GET / HTTP/1.1\r\n", b"\x00\xff\n", b"{}\n", b"\n", b"[" * 9000 + b"\n"], ids=repr
)
def test_garbage_is_refused_and_the_next_request_is_answered(tmp_path: Path, words: bytes) -> None:
    with serving(tmp_path / "s") as served, raw(served.path) as connection:
        connection.sendall(words)
        assert reply(connection)["code"] in ("malformed", "unsupported_protocol")
        connection.sendall(STATUS)
        assert reply(connection)["ok"]


def test_a_line_without_an_end_is_refused_and_ends_the_connection(tmp_path: Path) -> None:
    with serving(tmp_path / "s") as served:
        with raw(served.path) as connection:
            connection.sendall(b"x" * (MAX_REQUEST_BYTES + 1))
            assert reply(connection)["code"] == "too_long"
            assert ends(connection)
        assert local.ask("status", path=served.path)["ready"]


def test_a_caller_that_never_reads_is_disconnected(tmp_path: Path) -> None:
    limits = ControlLimits(read_seconds=0.2, pause_seconds=0)
    with serving(tmp_path / "s", limits=limits) as served, raw(served.path) as deaf:
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            deaf.sendall(STATUS * 100_000)
        assert local.ask("status", path=served.path)["ready"]
        assert ends(deaf)


def test_a_path_that_is_too_long_for_an_address_is_served_all_the_same(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 40)
    folder.mkdir()
    with serving(folder / "s") as served:
        assert local.ask("status", path=served.path)["ready"]


def test_more_connections_than_allowed_are_refused_until_one_closes(tmp_path: Path) -> None:
    limits = ControlLimits(connections=20, reserved_for_operators=0)
    with serving(tmp_path / "s", limits=limits) as served:
        with ExitStack() as held:
            refused = 0
            for _ in range(REFUSED + 20):
                connection = held.enter_context(raw(served.path))
                with contextlib.suppress(BrokenPipeError):  # refused already
                    connection.sendall(LIST)
                refused += not reply(connection)["ok"]
            assert refused == REFUSED
            with pytest.raises(local.RefusedError, match="too many programs"):
                local.ask("status", path=served.path)

        def answers() -> bool:
            try:
                return bool(local.ask("status", path=served.path)["ready"])
            except local.RefusedError:
                return False

        eventually(answers, within_seconds=5, what="room again")


def test_an_agent_that_is_overdue_says_so(tmp_path: Path) -> None:
    agent = FakeAgent()
    agent.stuck = True
    with serving(tmp_path / "s", agent=agent, limits=ControlLimits(answer_seconds=0.1)) as served:
        with pytest.raises(local.RefusedError) as refused:
            local.ask("drain", path=served.path)
        assert refused.value.code == "overdue"
        assert local.ask("status", path=served.path)["ready"]


@needs_root
def test_another_user_is_refused_even_where_the_sockets_mode_admits_it() -> None:
    with reachable_folder() as folder, serving(folder / "s") as served:
        served.path.chmod(0o666)
        other = started(ASK, str(served.path), STATUS.decode().strip())
        answer = json.loads(output_of(other))
        assert (answer["ok"], answer["code"]) == (False, "forbidden")
        assert f"user {UID} may not talk to this agent" in answer["message"]


@needs_root
def test_the_sockets_mode_alone_refuses_another_user() -> None:
    knock = (
        "import socket, sys\ntry:\n    socket.socket(1).connect(sys.argv[1])\n"
        "except PermissionError:\n    print('no')"
    )
    with reachable_folder() as folder, serving(folder / "s") as served:
        assert output_of(started(knock, str(served.path))) == "no\n"


@needs_root
def test_a_member_of_the_group_reads_and_announces_but_does_not_operate() -> None:
    with reachable_folder() as folder, serving(folder / "s") as served:
        group = served.path.lstat().st_gid
        for ask, code in (
            ("status", None),
            ("job_list", None),
            ("drain", "forbidden"),
            ("resume", "forbidden"),
        ):
            member = started(ASK, str(served.path), json.dumps({"protocol": 1, "ask": ask}), groups=[group])
            assert json.loads(output_of(member)).get("code") == code


@needs_root
def test_a_member_of_the_operators_group_drains() -> None:
    with reachable_folder() as folder, serving(folder / "s", operators=GID) as served:
        group = served.path.lstat().st_gid
        operator = started(ASK, str(served.path), '{"protocol": 1, "ask": "drain"}', groups=[group])
        assert json.loads(output_of(operator))["ok"]
        assert len(served.agent.requests) == 1


@needs_root
def test_members_cannot_block_root() -> None:
    hold = (
        "import socket, sys, time\nheld = [socket.socket(1) for _ in range(30)]\n"
        "for s in held: s.connect(sys.argv[1])\n"
        "for s in held:\n    try: s.sendall(sys.argv[2].encode())\n    except BrokenPipeError: pass\n"
        "print(sum('busy' in s.makefile().readline() for s in held), flush=True)\ntime.sleep(60)"
    )
    limits = ControlLimits(connections=20, reserved_for_operators=4)
    with reachable_folder() as folder, serving(folder / "s", limits=limits) as served:
        crowd = started(hold, str(served.path), LIST.decode(), groups=[served.path.lstat().st_gid])
        assert crowd.stdout is not None
        try:
            assert int(crowd.stdout.readline()) >= 30 - 16
            assert local.ask("status", path=served.path)["ready"]
        finally:
            crowd.kill()
            output_of(crowd)


class _Gated(FakeAgent):
    """An agent whose event loop blocks in `snapshot`, until it may go on."""

    def __init__(self) -> None:
        super().__init__()
        self.blocked, self.may_continue = threading.Event(), threading.Event()

    def snapshot(self) -> Snapshot:
        self.blocked.set()
        assert self.may_continue.wait(patience(20))
        return super().snapshot()


@needs_root
def test_members_that_connect_and_disconnect_at_once_do_not_block_root() -> None:
    come_and_go = (
        "import socket, sys\n"
        "for _ in range(60):\n    s = socket.socket(1)\n    s.connect(sys.argv[1])\n    s.close()"
    )
    agent, limits = _Gated(), ControlLimits(connections=20, reserved_for_operators=4)
    with (
        reachable_folder() as folder,
        serving(folder / "s", limits=limits, agent=agent) as served,
        raw(served.path) as first,
    ):
        first.sendall(STATUS)
        assert agent.blocked.wait(patience(20))
        output_of(started(come_and_go, str(served.path), groups=[served.path.lstat().st_gid]))
        with raw(served.path) as late:
            late.sendall(STATUS)
            agent.may_continue.set()
            assert [reply(one)["ok"] for one in (first, late)] == [True, True]


@needs_root
def test_one_user_cannot_block_the_others() -> None:
    hold = (
        "import socket, sys, time\nheld = [socket.socket(1) for _ in range(12)]\n"
        "for s in held: s.connect(sys.argv[1])\n"
        "for s in held:\n    try: s.sendall(sys.argv[2].encode())\n    except BrokenPipeError: pass\n"
        "print(sum('busy' in s.makefile().readline() for s in held), flush=True)\ntime.sleep(60)"
    )
    limits = ControlLimits(connections=20, per_user=8, reserved_for_operators=4)
    with reachable_folder() as folder, serving(folder / "s", limits=limits) as served:
        groups = [served.path.lstat().st_gid]
        crowd = started(hold, str(served.path), LIST.decode(), groups=groups)
        assert crowd.stdout is not None
        try:
            assert crowd.stdout.readline() == "4\n"
            other = started(ASK, str(served.path), LIST.decode().strip(), uid=UID + 1, groups=groups)
            assert json.loads(output_of(other))["ok"]
        finally:
            crowd.kill()
            output_of(crowd)


async def test_a_user_with_endless_requests_leaves_the_loop_its_time() -> None:
    queue, loop = FairQueue(), asyncio.get_running_loop()
    busy: list[tuple[float, float]] = []

    async def ask() -> None:
        async with queue.turn(1000):
            began = loop.time()
            while loop.time() - began < 0.01:
                pass
            busy.append((began, loop.time()))

    async with asyncio.TaskGroup() as group:
        for _ in range(5):
            group.create_task(ask())
    rests = [after[0] - before[1] for before, after in pairwise(busy)]
    assert min(rests) > REST_RATIO * 0.009


async def test_a_user_does_not_wait_for_another() -> None:
    queue = FairQueue()
    async with queue.turn(1000), asyncio.timeout(patience(10)), queue.turn(1001):
        pass


async def test_a_cancelled_wait_takes_no_turn() -> None:
    queue = FairQueue()
    async with queue.turn(1000):
        waiting = asyncio.ensure_future(queue.turn(1000).__aenter__())
        await asyncio.sleep(0)
        waiting.cancel()
    async with asyncio.timeout(patience(10)), queue.turn(1000):
        pass


def settings(**more: object) -> AgentSettings:
    return load({"registry_url": "ws://r", **more})


def test_the_socket_is_in_the_state_directory_by_default(tmp_path: Path) -> None:
    with open_control_socket(settings(), tmp_path) as control:
        assert control is not None
        assert control.policy.uid == os.geteuid()
        assert control.policy.group == (tmp_path / "agent.sock").lstat().st_gid
    with open_control_socket(settings(socket=str(tmp_path / "other")), tmp_path):
        assert [path.name for path in tmp_path.iterdir() if path.is_socket()] == ["other"]


@pytest.mark.parametrize(
    ("more", "why"), [({}, "is no socket"), ({"socket_group": "nobodies-own"}, "there is no group")]
)
def test_without_a_socket_the_agent_continues_and_says_why(
    more: dict[str, object], why: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "agent.sock").write_text("in the way")
    with open_control_socket(settings(**more), tmp_path) as control:
        assert control is None
    (said,) = [record for record in caplog.records if record.message == "local_socket_unavailable"]
    assert why in said.fields["problem"]  # type: ignore[attr-defined]  # our own
    assert (tmp_path / "agent.sock").read_text() == "in the way"


@needs_root
def test_a_group_that_cannot_reach_the_socket_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def logged() -> list[str]:
        return [record.message for record in caplog.records]

    with reachable_folder() as folder:
        with open_control_socket(settings(socket_group="54321", socket=str(folder / "s")), tmp_path):
            assert "local_socket_unreachable" not in logged()
        shut = folder / "shut"
        shut.mkdir(mode=0o700)
        with open_control_socket(settings(socket=str(shut / "s")), tmp_path):
            assert "local_socket_unreachable" not in logged()
        with open_control_socket(settings(socket_group="54321", socket=str(shut / "s")), tmp_path):
            assert "local_socket_unreachable" in logged()
    (said,) = [record for record in caplog.records if record.message == "local_socket_unreachable"]
    assert f"may not enter {shut}" in said.fields["problem"]  # type: ignore[attr-defined]  # our own
