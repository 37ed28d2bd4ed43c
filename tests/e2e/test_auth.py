"""Tokens between real programs: who comes in, who comes back, who may do what; and no secret is shown."""

import json
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from tests.e2e.place import PLAIN, Place, made_by_command, operators
from tests.programs import COMMAND, Agent, Registry, eventually
from tests.waiting import patience

pytestmark = pytest.mark.e2e


def opens(registry: Registry, token: str) -> bool:
    """Say whether the nodes' door opens to a token."""
    try:
        with connect(registry.node_url, proxy=None, additional_headers={"Authorization": f"Bearer {token}"}):
            return True
    except InvalidStatus:
        return False


def await_words(words: str, agent: Agent) -> None:
    eventually(lambda: words in agent.output(), within_seconds=10, what=words)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """After each test: nothing that was secret in it has been shown by any program."""
    with ExitStack() as running:
        place = Place(tmp_path, running)
        yield place
    for identity in tmp_path.glob("*/identity.json"):
        place.secrets.add(str(json.loads(identity.read_text())["node_token"]))
    assert [secret for secret in place.secrets if secret in place.shown()] == []


def test_an_agent_joins_once_and_returns_with_its_own_token(place: Place) -> None:
    registry = place.registry()
    agent = place.agent(registry, "a", join_token=made_by_command(place, registry, "token", "create"))
    node = place.await_ready(registry)
    agent.send(signal.SIGKILL)
    agent.wait(patience(5))
    (place.folder / "a.token").unlink()
    place.agent(registry, "a")
    back = eventually(
        lambda: next((n for n in place.nodes(registry) if n["connected"]), None), within_seconds=20, what="it"
    )
    assert back["node_id"] == node["node_id"]
    assert place.await_ready(registry)["node_id"] == node["node_id"]


def test_a_node_that_lost_its_state_takes_its_id_back_with_a_reclaim_token(place: Place) -> None:
    registry = place.registry()
    agent = place.agent(registry, "a", join_token=place.join_token(registry))
    node = place.await_ready(registry)
    old = place.node_token("a")
    agent.send(signal.SIGTERM)
    agent.wait(patience(5))
    shutil.rmtree(place.folder / "a")
    token = made_by_command(place, registry, "node", "readmit", node["node_id"])
    place.agent(registry, "a", join_token=token)
    assert place.await_ready(registry)["node_id"] == node["node_id"]
    assert place.node_token("a") != old
    place.secrets.add(old)


def test_without_a_valid_token_an_agent_is_refused_and_logs_the_next_step(place: Place) -> None:
    registry = place.registry()
    without_token = place.agent(registry, "without_token")
    wrong = place.agent(registry, "wrong", join_token="gpuj_00000000_" + "x" * 43)
    for agent in (without_token, wrong):
        await_words("ask its operator for a join token", agent)
    assert place.nodes(registry) == []


def test_a_revoked_join_token_admits_no_node_and_disconnects_none(place: Place) -> None:
    registry = place.registry()
    made = place.make(registry, kind="join", uses=5)
    place.agent(registry, "first", join_token=made["token"])
    node = place.await_ready(registry)
    assert place.ask(registry, "DELETE", f"/v1/tokens/{made['token_id']}")[0] == 204
    late = place.agent(registry, "late", join_token=made["token"])
    await_words("ask its operator for a join token", late)
    (only,) = place.nodes(registry)
    assert (only["node_id"], only["connected"]) == (node["node_id"], True)


def test_after_kill_9_of_the_registry_tokens_and_nodes_are_as_they_were(place: Place) -> None:
    first = place.registry("--store", "sqlite")
    place.agent(first, "a", join_token=place.join_token(first))
    node = place.await_ready(first)
    reader = place.make(first, kind="operator", role="read", name="ann")
    admin = place.operator_token
    first.send(signal.SIGKILL)
    first.wait(patience(5))
    (place.folder / "a.token").unlink()
    second = place.registry("--store", "sqlite", node_port=first.node_port, operator_port=first.operator_port)
    assert place.operator_token == admin
    assert place.ask(second, "GET", "/v1/nodes", token=reader["token"])[0] == 200
    assert place.await_ready(second)["node_id"] == node["node_id"]


def test_each_role_may_do_its_own_actions_and_no_more(place: Place) -> None:
    registry = place.registry()
    place.agent(registry, "a", join_token=place.join_token(registry))
    node_id = place.await_ready(registry)["node_id"]
    asked = [
        ("GET", "/v1/nodes", None),
        ("POST", f"/v1/nodes/{node_id}/drain", {}),
        ("POST", "/v1/tokens", {"kind": "join"}),
    ]
    granted = {}
    for role in ("read", "operate", "admin"):
        token = place.make(registry, kind="operator", role=role, name=role)["token"]
        answers = [place.ask(registry, *one, token=token) for one in asked]
        granted[role] = [status for status, _ in answers]
        place.secrets.update(text for _, said in answers if isinstance(text := said.get("token"), str))
        assert all("needs the role" in said["detail"] for status, said in answers if status == 403)
    assert granted == {"read": [200, 403, 403], "operate": [200, 200, 403], "admin": [200, 200, 201]}
    assert place.ask(registry, "GET", "/v1/nodes", token="gpuo_00000000_x")[0] == 401
    assert place.ask(registry, "GET", "/v1/nodes", token=place.node_token("a"))[0] == 401

    def who_drained() -> list[str]:
        logged = registry.events("operator_request")
        return [one["name"] for one in logged if one["path"].endswith("/drain")]

    eventually(lambda: len(who_drained()) > 1, within_seconds=10, what="both drains in the log")
    assert who_drained() == ["operate", "admin"]


def test_of_two_agents_with_one_state_the_newest_wins_and_the_other_logs_why_it_stops(
    place: Place,
) -> None:
    registry = place.registry()
    original = place.agent(registry, "original", join_token=place.join_token(registry))
    node = place.await_ready(registry)
    shutil.copytree(
        place.folder / "original", place.folder / "clone", ignore=shutil.ignore_patterns("*.sock")
    )
    clone = place.agent(registry, "clone")
    refused = original.await_event("registry_error", within_seconds=15, code="SESSION_SUPERSEDED")
    assert "stop the other agent" in refused["message"]
    place.await_ready(registry)
    epochs = len(registry.events("node_registered"))
    threading.Event().wait(3.0)  # time for a fight, were there one
    (only,) = place.nodes(registry)
    assert (only["node_id"], only["connected"]) == (node["node_id"], True)
    assert len(registry.events("node_registered")) == epochs
    assert original.events("node_registered")
    assert clone.events("node_registered")


def test_an_older_nodes_token_in_the_url_is_accepted_and_shown_nowhere(place: Place) -> None:
    registry = place.registry()
    token = place.join_token(registry)
    with connect(f"{registry.node_url}?token={token}", proxy=None) as socket:
        message = {
            "type": "node_register",
            "version": "0.9",
            "hardware": {"cpu_cores": 1, "memory_gb": 1, "gpus": [{"name": "T4", "memory_gb": 16}]},
            "installed_models": [],
            "accept_public_jobs": False,
        }
        socket.send(json.dumps(message))
        ack = json.loads(socket.recv(timeout=patience(5)))
    assert ack["type"] == "node_register_ack"
    place.secrets.add(ack["node_token"])


def test_the_command_line_finds_the_admin_token_on_this_machine(place: Place) -> None:
    registry = place.registry()
    words = [*COMMAND, "registry", "node", "list", "--server", registry.api]
    plain = {**PLAIN, "HOME": str(place.folder)}

    def ask(**environment: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            words,
            env={**plain, **environment},
            capture_output=True,
            text=True,
            timeout=patience(30),
            check=False,
        )

    assert ask(GPU_REGISTRY_STATE_DIR=str(place.state)).returncode == 0
    assert ask(GPU_REGISTRY_TOKEN=place.operator_token).returncode == 0
    without = ask()
    assert (without.returncode, "--token-file FILE" in without.stderr) == (6, True)


def test_after_an_older_backup_a_node_with_a_newer_token_can_return(place: Place) -> None:
    first = place.registry("--store", "sqlite")
    agent = place.agent(first, "a", join_token=place.join_token(first))
    node_id = place.await_ready(first)["node_id"]
    before = place.node_token("a")
    operators(place, "backup", str(place.folder / "then.db"), "--server", first.api)
    operators(place, "token", "rotate", node_id, "--server", first.api)
    eventually(lambda: place.node_token("a") != before, within_seconds=10, what="it has another token")
    for program in (agent, first):
        program.send(signal.SIGTERM)
        program.wait(patience(10))
    operators(place, "restore", str(place.folder / "then.db"), "--state-dir", str(place.state), "--force")

    second = place.registry("--store", "sqlite", node_port=first.node_port, operator_port=first.operator_port)
    assert opens(second, before)  # as docs/howto/backup.md warns
    refused = place.agent(second, "a")
    await_words("gpu-agent registry node readmit", refused)
    refused.send(signal.SIGTERM)
    refused.wait(patience(10))
    place.agent(second, "a", join_token=made_by_command(place, second, "node", "readmit", node_id))
    assert place.await_ready(second)["node_id"] == node_id
    assert not opens(second, before)
