"""A registry with several addresses: real agents move to another when theirs fails, as the same node."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from gpu_agent.runtime.tls.contexts import server_context
from tests.authority import Authority
from tests.e2e.doors import Door
from tests.e2e.encrypted import Encrypted, EncryptedRegistry
from tests.e2e.impostors import Impostor
from tests.e2e.networks import TwoCables, needs_networks
from tests.e2e.place import Place
from tests.programs import COMMAND, Agent, Program, eventually, free_port
from tests.waiting import patience

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 30\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
)


@pytest.fixture
def running() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def place(tmp_path: Path, running: ExitStack) -> Place:
    return Place(tmp_path, running)


def started(place: Place, running: ExitStack, urls: list[str], *, name: str, join_token: str) -> Agent:
    file = place.folder / f"{name}.token"
    file.write_text(join_token)
    words = ("--join-token-file", str(file))
    return running.enter_context(Agent(",".join(urls), place.folder / name, *words, simulate="1xT4-16GB"))


def session_of(folder: Path) -> dict[str, Any]:
    """The session as the agent on this machine shows it."""
    done = subprocess.run(
        [*COMMAND, "status", "--json", "--socket", str(folder / "agent.sock")],
        capture_output=True,
        timeout=patience(30),
        check=True,
    )
    session: dict[str, Any] = json.loads(done.stdout)["session"]
    return session


def test_an_agent_whose_address_fails_is_back_at_another_within_seconds_as_the_same_node(
    place: Place, running: ExitStack
) -> None:
    registry = place.registry()
    doors = {door.url: door for door in (running.enter_context(Door(registry.node_port)) for _ in range(2))}
    agent = started(place, running, [*doors], name="a", join_token=place.join_token(registry))
    node_id = place.await_ready(registry)["node_id"]
    token = place.node_token("a")
    used = [agent.events("node_registered")[0]["registry"]]
    for _ in range(2):
        before = session_of(place.folder / "a")
        assert before["registry"] == used[-1]
        (other,) = before["other_addresses"]
        if len(used) > 1:  # the door that failed first is open again
            doors[other] = running.enter_context(Door(registry.node_port, port=doors[other].port))
        doors[used[-1]].shut()
        agent.await_event("session_backing_off", registry=used[-1], within_seconds=5)
        agent.await_event("node_registered", registry=other, node_id=node_id, within_seconds=5)
        used.append(other)
    assert used[0] == used[2] != used[1]
    place.await_ready(registry)
    assert [node["node_id"] for node in place.nodes(registry)] == [node_id]
    assert place.node_token("a") == token
    assert max(line["delay_seconds"] for line in agent.events("session_backing_off")) < 1


def test_addresses_that_refuse_or_are_full_cost_a_second_each(place: Place, running: ExitStack) -> None:
    registry = place.registry()
    full = running.enter_context(Impostor(None, FULL))
    door = running.enter_context(Door(registry.node_port))
    urls = [f"ws://127.0.0.1:{free_port()}", f"ws://127.0.0.1:{full.port}", door.url]
    agents = [
        started(place, running, urls, name=name, join_token=place.join_token(registry)) for name in "abc"
    ]
    for agent in agents:
        agent.await_event("node_registered", registry=door.url, within_seconds=10)
        assert all(line["delay_seconds"] < 1 for line in agent.events("session_backing_off"))


def test_an_impostor_among_the_addresses_gets_no_token_and_the_node_returns_to_the_true_one(
    tmp_path: Path, running: ExitStack
) -> None:
    place = Encrypted(tmp_path, running)
    place.trust(place.authority)
    registry = place.registry()
    assert isinstance(registry, EncryptedRegistry)
    secrets = [place.make_join_token()]
    impostor = running.enter_context(Impostor(server_context(Authority(tmp_path / "others").issue())))
    door = running.enter_context(Door(registry.node_port))
    true_url = door.url.replace("ws://127.0.0.1", "wss://localhost")
    urls = f"{impostor.url},{true_url}"
    agents = {
        "by-authority": place.agent(urls, "by-authority"),
        "by-pin": place.agent(urls, "by-pin", "--tls-pin", f"sha256//{'A' * 43}=;{registry.pin}"),
    }
    for agent in agents.values():
        agent.await_event("node_registered", registry=true_url, within_seconds=30)
    ids = {node["node_id"] for node in place.await_ready(2)}
    secrets += [json.loads((tmp_path / name / "identity.json").read_text())["node_token"] for name in agents]
    door.shut()
    for agent in agents.values():
        agent.await_event("session_backing_off", registry=impostor.url, within_seconds=20)
    running.enter_context(Door(registry.node_port, port=door.port))
    assert {node["node_id"] for node in place.await_ready(2)} == ids
    assert impostor.visits
    assert [secret for secret in secrets if secret.encode() in impostor.heard] == []


@needs_networks
def test_an_address_that_falls_silent_is_left_before_the_registry_takes_the_node_for_lost(
    tmp_path: Path, running: ExitStack
) -> None:
    """A machine that loses power or its cable closes no connection: the kernel has to give it up."""
    cables = running.enter_context(TwoCables())
    hosts = {f"ws://{cables.far_host(cable)}:8080/ws/node": cable for cable in (1, 2)}
    listens = ("--node-listen", "0.0.0.0:8080", "--insecure-plaintext", "--insecure-no-auth")
    registry = running.enter_context(
        Program(
            *("registry", "serve", "--auth", "off", "--store", "memory", "--allow-simulated", *listens),
            *("--operator-listen", "127.0.0.1:0", "--state-dir", str(tmp_path / "registry")),
            within=cables.far,
        )
    )
    registry.await_event("registry_listening", within_seconds=20)
    agent = running.enter_context(
        Program(
            *("run", "--registry", ",".join(hosts), "--state-dir", str(tmp_path / "a")),
            *("--simulate", "1xT4-16GB"),
            within=cables.near,
        )
    )
    first = agent.await_event("node_registered", within_seconds=20)
    agent.await_event("node_status_changed", to="ready", within_seconds=20)
    cables.cut(hosts[first["registry"]])
    (other,) = (url for url in hosts if url != first["registry"])
    again = agent.await_event("node_registered", registry=other, within_seconds=60)
    assert again["node_id"] == first["node_id"]
    eventually(
        lambda: (
            len(agent.events("node_registered")) == 2
            and agent.events("node_status_changed")[-1]["to"] == "ready"
        ),
        within_seconds=20,
        what="ready again",
    )
    assert registry.events("heartbeat_timeout") == []
