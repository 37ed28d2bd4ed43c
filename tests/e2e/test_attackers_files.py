"""What another user of the machine may have put where the programs write: refused or logged, nothing lost."""

import os
import socket
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.node.other_user import GID, UID, needs_root
from tests.programs import COMMAND, Agent
from tests.waiting import patience

pytestmark = [pytest.mark.e2e, pytest.mark.skipif(os.name != "posix", reason="files of POSIX")]

NOWHERE = "ws://127.0.0.1:9/ws/node"
UNUSABLE = 4
IDENTITY = '{"format": 1, "node_id": "node-A", "node_token": null}\n'


@pytest.fixture
def state(tmp_path: Path) -> Path:
    folder = tmp_path / "state"
    folder.mkdir(mode=0o700)
    return folder


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[Path]:
    """A file that links lead to; it is as it was in the end."""
    file = tmp_path / "victim"
    file.write_text("unchanged\n")
    file.chmod(0o644)
    yield file
    assert (file.read_text(), stat.S_IMODE(file.stat().st_mode)) == ("unchanged\n", 0o644)


def refused(*words: str | Path) -> str:
    """What a program says that refuses to start."""
    ended = subprocess.run(
        [*COMMAND, *map(str, words)], capture_output=True, text=True, check=False, timeout=patience(60)
    )
    assert ended.returncode == UNUSABLE, ended.stderr
    assert "Traceback" not in ended.stderr
    return ended.stderr


def agent_refused(state_dir: Path) -> str:
    return refused("run", "--registry", NOWHERE, "--simulate", "1xL4-24GB", "--state-dir", state_dir)


def registry_refused(state_dir: Path) -> str:
    ports = ("--node-listen", "127.0.0.1:0", "--operator-listen", "127.0.0.1:0")
    return refused("registry", "serve", *ports, "--state-dir", state_dir)


def given_away(path: Path) -> None:
    os.chown(path, UID, GID, follow_symlinks=False)


REFUSALS = pytest.mark.parametrize("refusing", [agent_refused, registry_refused], ids=["agent", "registry"])


@needs_root
@REFUSALS
def test_another_users_link_instead_of_the_state_directory_is_refused(
    refusing: Callable[[Path], str], tmp_path: Path, state: Path
) -> None:
    link = tmp_path / "link"
    link.symlink_to(state)
    given_away(link)
    said = refusing(link)
    assert f"{link} is a link that user {UID} has made; remove it" in said
    assert list(state.iterdir()) == []


@REFUSALS
def test_a_file_instead_of_the_state_directory_is_refused(
    refusing: Callable[[Path], str], victim: Path
) -> None:
    said = refusing(victim)
    assert str(victim) in said
    assert "--state-dir" in said


@pytest.mark.parametrize("name", ["agent.lock", "identity.json"])
def test_links_inside_the_state_directory_are_not_followed(name: str, state: Path, victim: Path) -> None:
    (state / name).symlink_to(victim)
    said = agent_refused(state)
    assert name in said
    assert "replace that link by a file of its own" in said
    assert (state / name).is_symlink()


@pytest.mark.parametrize("name", ["agent.lock", "identity.json"])
def test_pipes_inside_the_state_directory_delay_nothing(name: str, state: Path) -> None:
    os.mkfifo(state / name)
    said = agent_refused(state)
    assert name in said
    assert "it is no regular file); move it away" in said


@needs_root
@pytest.mark.parametrize("owner", [0, UID])
def test_a_state_directory_that_others_may_write_is_logged_with_the_fix(owner: int, state: Path) -> None:
    os.chown(state, owner, owner)
    state.chmod(0o700 if owner else 0o777)
    with Agent(NOWHERE, state) as agent:
        logged = agent.await_event("state_directory_exposed")
        unreachable = agent.await_event("local_socket_unavailable")
    assert (logged["state_dir"], logged["fix"]) == (str(state), f"run `chmod 700 {state}`, as its owner")
    assert str(state) in unreachable["problem"]


@needs_root
@pytest.mark.parametrize(("owner", "mode"), [(0, 0o755), (UID, 0o700)])
def test_a_registrys_state_directory_that_others_may_enter_is_refused(
    owner: int, mode: int, state: Path
) -> None:
    os.chown(state, owner, owner)
    state.chmod(mode)
    said = registry_refused(state)
    assert str(state) in said
    assert f"chmod 700 {state}" in said or "run the registry as that user" in said
    assert list(state.iterdir()) == []


def test_an_identity_that_others_may_read_is_made_private_and_used(state: Path) -> None:
    file = state / "identity.json"
    file.write_text(IDENTITY)
    file.chmod(0o644)
    with Agent(NOWHERE, state) as agent:
        assert agent.await_event("agent_started")["node_id"] == "node-A"
    assert (file.read_text(), stat.S_IMODE(file.stat().st_mode)) == (IDENTITY, 0o600)


def test_an_invalid_identity_is_renamed(state: Path) -> None:
    (state / "identity.json").write_text("{torn")
    with Agent(NOWHERE, state) as agent:
        logged = agent.await_event("identity_corrupt")
        agent.await_event("agent_started")
    assert Path(logged["moved_to"]).read_text() == "{torn"


@pytest.mark.parametrize("what", ["a file", "a link", "a folder"])
def test_a_file_at_the_sockets_path_is_logged_and_not_changed(
    what: str, tmp_path: Path, state: Path, victim: Path
) -> None:
    place = state / "agent.sock"
    match what:
        case "a file":
            place.write_text("mine")
        case "a link":
            place.symlink_to(victim)
        case _:
            place.mkdir()
    before = place.lstat()
    with Agent(NOWHERE, state) as agent:
        logged = agent.await_event("local_socket_unavailable")
        agent.await_event("agent_started")
    assert f"{place} is there and is " in logged["problem"]
    assert "move it away" in logged["problem"]
    assert place.lstat() == before
    assert tmp_path.is_dir()


@needs_root
def test_another_users_socket_is_logged_and_not_changed(state: Path) -> None:
    place = state / "agent.sock"
    with closing(socket.socket(socket.AF_UNIX)) as theirs:
        theirs.bind(str(place))
        theirs.listen()
        given_away(place)
        with Agent(NOWHERE, state) as agent:
            logged = agent.await_event("local_socket_unavailable")
            agent.await_event("agent_started")
        assert f"{place} is a socket of user {UID}" in logged["problem"]
        assert place.is_socket()
