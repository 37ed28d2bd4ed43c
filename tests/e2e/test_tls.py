"""TLS between real programs: who knows whom, and certificates that change while all of them run."""

import json
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from gpu_agent.runtime.tls.certificate import parse_der, pin_of
from tests.authority import Authority
from tests.e2e.encrypted import Encrypted, await_why, put
from tests.programs import COMMAND, eventually
from tests.waiting import patience

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(sys.platform == "win32", reason="SIGHUP"),
    pytest.mark.timeout(240),
]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Encrypted]:
    with ExitStack() as running:
        yield Encrypted(tmp_path, running)


def pin_at(url: str) -> str:
    """The pin of the key at a port, as anybody sees it who connects now."""
    port = int(url.rsplit(":", 1)[1].partition("/")[0])
    return pin_of(
        parse_der(ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate(("127.0.0.1", port), timeout=5)))
    )


def test_commands_beside_an_encrypted_registry_need_no_options(place: Encrypted) -> None:
    """Whatever name its certificate is for, and whatever its ports are."""
    pin = place.certify(place.authority, "registry.example")
    registry = place.registry()
    assert place.ask("node", "list").returncode == 0
    for words, said in (
        (("--server", registry.api.replace("https", "http")), "is encrypted: name it with --server https://"),
        (("--server", registry.api.replace("127.0.0.1", "localhost")), "an authority unknown here issued it"),
    ):
        refused = place.ask("node", "list", *words)
        assert refused.returncode == 5
        assert said in refused.stderr
    place.make_join_token()
    by_pin = place.agent(registry.node_url, "by-pin", "--tls-pin", pin)
    by_pin.await_event("node_registered", within_seconds=20)
    by_name = place.agent(registry.node_url, "by-name", "--tls-pin", f"sha256//{'A' * 43}=")
    await_why(by_name, "which is none of `tls_pin`")
    assert place.await_ready()[0]["connected"]
    registry.end()
    assert not (place.state / "operator.json").exists()


def test_a_renewed_certificate_serves_new_connections_and_ends_none(place: Encrypted) -> None:
    place.trust(place.authority)
    registry = place.registry()
    place.make_join_token()
    agent = place.agent(registry.node_url, "a")
    (node,) = place.await_ready()
    pin = place.certify(place.authority)
    assert pin_at(registry.node_url) != pin
    registry.send(signal.SIGHUP)
    assert registry.await_event("certificate_loaded", within_seconds=20)["pin"] == pin
    assert pin_at(registry.node_url) == pin_at(registry.api) == pin
    assert place.ask("node", "list").returncode == 0
    late = place.agent(registry.node_url, "late", "--tls-pin", pin)
    late.await_event("node_registered", within_seconds=20)
    place.await_ready(2)
    assert len(agent.events("node_registered")) == 1
    assert agent.events("session_backing_off") == []
    assert node["node_id"] in {one["node_id"] for one in place.nodes()}


def test_an_agent_takes_another_authority_without_a_restart(place: Encrypted) -> None:
    """The registry moves to an authority that the agent does not know yet."""
    place.trust(place.authority)
    registry = place.registry()
    node_port, operator_port = registry.node_port, int(registry.api.rsplit(":", 1)[1])
    place.make_join_token()
    agent = place.agent(registry.node_url, "a")
    (node,) = place.await_ready()
    another = Authority(place.folder / "another")
    place.certify(another)
    registry.end()
    place.registry(node_port=node_port, operator_port=operator_port)
    await_why(agent, "an authority unknown here issued it: name that authority's certificate in `tls_ca")
    place.trust(another)
    assert place.await_ready()[0]["node_id"] == node["node_id"]


def test_an_unusable_file_is_in_the_log_and_the_status_and_attempts_are_far_apart(
    place: Encrypted,
) -> None:
    """Only a person can fix it."""
    place.known.write_text("half a file")
    (place.folder / "join.token").write_text("gpuj_00000000_none")
    agent = place.agent("wss://localhost:9/ws/node", "a")
    problem = f"{place.known} holds no certificate in PEM"
    await_why(agent, problem)
    assert agent.events("session_backing_off")[0]["delay_seconds"] >= 40
    asked = subprocess.run(
        [*COMMAND, "status", "--json", "--socket", str(place.folder / "a" / "agent.sock")],
        capture_output=True,
        timeout=patience(30),
        check=False,
    )
    session = json.loads(asked.stdout)["session"]
    assert problem in session["why"]
    assert session["next_attempt_in_seconds"] > 20


def test_an_agent_takes_another_pin_by_a_reload(place: Encrypted) -> None:
    registry = place.registry()
    place.make_join_token()
    settings = place.folder / "agent.toml"
    settings.write_text(f'tls_pin = ["sha256//{"A" * 43}="]\n')
    agent = place.agent(registry.node_url, "a", "--config", str(settings))
    await_why(agent, "which is none of `tls_pin`")
    settings.write_text(f'tls_pin = ["{registry.await_event("registry_listening")["pin"]}"]\n')
    agent.send(signal.SIGHUP)
    agent.await_event("settings_reloaded", changed=["tls_pin"], waiting_for_restart=[])
    agent.await_event("node_registered", within_seconds=40)


def test_nodes_and_operators_authenticate_with_certificates_where_required(
    place: Encrypted,
) -> None:
    place.trust(place.authority)
    clients = Authority(place.folder / "clients")
    registry = place.registry("--tls-client-ca-file", str(clients.file))
    own = clients.issue("me")
    mine = {"GPU_REGISTRY_CERT_FILE": str(own.cert_file), "GPU_REGISTRY_KEY_FILE": str(own.key_file)}
    assert "asks for a certificate of this side's own" in place.ask("node", "list").stderr
    token = place.ask("token", "create", "--out", str(place.folder / "join.token"), **mine)
    assert token.returncode == 0, token.stderr
    cert, key = place.folder / "node.pem", place.folder / "node.key"
    put(clients.issue("node", from_days=-9, to_days=-1), cert, key)
    agent = place.agent(registry.node_url, "a", "--tls-cert-file", str(cert), "--tls-key-file", str(key))
    await_why(agent, "the registry does not accept this side's certificate: see whether it has expired")
    put(clients.issue("node"), cert, key)
    agent.await_event("node_registered", within_seconds=40)
    refused = registry.events("tls_handshake_failed")
    assert any("peer did not return a certificate" in line["reason"] for line in refused)
    assert any("certificate verify failed" in line["reason"] for line in refused)


def test_a_token_is_sent_unencrypted_to_another_machine_only_with_the_dangerous_flag(
    place: Encrypted,
) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        try:
            asked.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this machine has no address but loopback's")
        own = asked.getsockname()[0]
    registry = place.registry("--node-listen", f"{own}:0", "--insecure-plaintext", encrypted=False)
    place.make_join_token()
    url = f"ws://{own}:{registry.node_port}/ws/node"
    careful = place.agent(url, "careful")
    await_why(careful, "is not encrypted, and anyone on the network path could read")
    reckless = place.agent(url, "reckless", "--insecure-plaintext")
    reckless.await_event("token_sent_plaintext", within_seconds=20)
    reckless.await_event("node_registered", within_seconds=20)
    eventually(lambda: len(place.nodes()) == 1, within_seconds=20, what="one node")
