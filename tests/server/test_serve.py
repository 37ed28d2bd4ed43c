"""The composed program, as a process of its own."""

import gc
import json
import signal
import socket
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from websockets.sync.client import connect

from gpu_agent.runtime.state_dir import OPERATOR_TOKEN_FILE
from gpu_agent.server.address import Address
from gpu_agent.server.serve import EXIT_FAILED, EXIT_UNUSABLE_STATE, serve
from gpu_agent.server.settings import load
from tests.authority import Authority
from tests.programs import Program, Registry

PORTS = ("--node-listen", "127.0.0.1:0", "--operator-listen", "127.0.0.1:0")


def test_it_says_where_it_listens_and_serves_both_ports() -> None:
    with Registry() as registry:
        listening = registry.await_event("registry_listening")
        assert {"node_listen", "operator_listen"} <= set(listening)
        assert registry.node_port != registry.operator_port
        with connect(registry.node_url, proxy=None) as node:
            node.send("nonsense")
            assert json.loads(node.recv(timeout=5))["code"] == "INVALID_MESSAGE"
        with urllib.request.urlopen(registry.api + "/healthz", timeout=5) as answer:  # noqa: S310 - ours
            assert json.load(answer)["status"] == "ok"


def test_it_logs_its_own_figures_as_often_as_it_is_told() -> None:
    with Registry(environment={"GPU_REGISTRY_PERFORMANCE_INTERVAL_SECONDS": "0.2"}) as registry:
        figures = registry.await_event("performance")
    assert {"beats_per_second", "loop_lag_ms", "select_p99_us", "nodes", "connections"} <= set(figures)
    assert 0 <= figures["loop_lag_p50_ms"] <= figures["loop_lag_p99_ms"] <= figures["loop_lag_ms"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_within_five_seconds_even_with_a_node_that_never_answers(
    number: signal.Signals,
) -> None:
    with Registry() as registry, connect(registry.node_url, proxy=None):
        began = time.monotonic()
        registry.send(number)
        assert registry.wait(5) == 0
        assert time.monotonic() - began < 5
        assert registry.events("registry_stopping")[0]["signal"] == number.name
        assert registry.events("registry_stopped")


def test_a_taken_port_ends_it_with_the_next_step() -> None:
    with (
        Registry() as first,
        Program(
            "registry",
            "serve",
            "--auth",
            "off",
            "--store",
            "memory",
            "--node-listen",
            f"127.0.0.1:{first.node_port}",
            "--operator-listen",
            "127.0.0.1:0",
        ) as second,
    ):
        assert second.wait(15) == EXIT_FAILED
        assert "--node-listen" in second.events("registry_start_failed")[0]["problem"]


async def test_a_taken_operator_port_closes_the_nodes_port_again() -> None:
    with Address("127.0.0.1", 0).bind() as taken:
        operator = f"127.0.0.1:{taken.getsockname()[1]}"
        places = {"store": "memory", "node_listen": "127.0.0.1:0", "operator_listen": operator}
        settings = load({"auth": "off", **places})
        assert await serve(settings, lambda: settings) == EXIT_FAILED
    assert gc.isenabled()


def test_the_collector_is_left_alone_by_importing_this() -> None:
    assert gc.get_threshold()[0] < 50_000


def refused_at_start(*arguments: str) -> tuple[int, str]:
    """How a registry that cannot start ends, and what it says."""
    with Program("registry", "serve", "--store", "memory", *PORTS, *arguments) as program:
        code = program.wait(15)
        return code, str(program.events("registry_start_failed")[0]["problem"])


def test_a_state_directory_that_is_open_to_others_ends_it_with_what_mends_it(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    code, problem = refused_at_start("--state-dir", str(tmp_path))
    assert code == EXIT_UNUSABLE_STATE
    assert f"chmod 700 {tmp_path}" in problem


def test_by_default_it_asks_for_tokens_and_leaves_the_first_one_in_its_state_directory(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "state"
    with Program("registry", "serve", "--store", "memory", *PORTS, "--state-dir", str(folder)) as registry:
        api = f"http://{registry.await_event('registry_listening', within_seconds=20)['operator_listen']}"
        token = (folder / OPERATOR_TOKEN_FILE).read_text().strip()
        assert asked(f"{api}/v1/nodes", token) == 200
        assert asked(f"{api}/v1/nodes", None) == 401
        assert asked(f"{api}/healthz", None) == 200
        assert registry.events("registry_checks_no_credentials") == []
        assert registry.events("registry_without_tls") == []
        assert token not in registry.told()


def asked(url: str, token: str | None) -> int:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=5) as answer:  # noqa: S310 - ours
            status: int = answer.status
    except urllib.error.HTTPError as refused:
        refused.close()
        status = refused.code
    return status


def test_what_lets_others_in_or_listen_is_said_plainly(tmp_path: Path) -> None:
    with Program(
        *("registry", "serve", "--store", "memory", "--state-dir", str(tmp_path)),
        *("--node-listen", "0.0.0.0:0", "--operator-listen", "127.0.0.1:0", "--insecure-plaintext"),
    ) as registry:
        said = registry.await_event("registry_without_tls", within_seconds=20)
        assert (said["listener"], said["address"]) == ("node_listen", "0.0.0.0:0")
    with Registry() as registry:
        assert registry.await_event("registry_checks_no_credentials", within_seconds=20)


def test_a_certificate_that_cannot_be_used_ends_it_with_what_mends_it(tmp_path: Path) -> None:
    made = Authority(tmp_path).issue()
    assert made.key_file is not None
    made.key_file.chmod(0o644)
    named = ("--tls-cert-file", str(made.cert_file), "--tls-key-file", str(made.key_file))
    code, problem = refused_at_start(*named, "--state-dir", str(tmp_path / "state"))
    assert code == EXIT_UNUSABLE_STATE
    assert f"chmod 600 {made.key_file}" in problem


def test_with_a_certificate_both_ports_are_encrypted(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    made = authority.issue()
    named = ("--tls-cert-file", str(made.cert_file), "--tls-key-file", str(made.key_file))
    with Program("registry", "serve", "--store", "memory", *PORTS, "--auth", "off", *named) as registry:
        said = registry.await_event("registry_listening", within_seconds=20)
        assert said["encrypted"]
        for port in (said["node_listen"], said["operator_listen"]):
            with (
                connect_to(port) as plain,
                authority.trusting().wrap_socket(plain, server_hostname="localhost"),
            ):
                pass


def connect_to(address: str) -> socket.socket:
    host, port = address.rsplit(":", 1)
    return socket.create_connection((host, int(port)), timeout=5)


def test_a_database_that_cannot_be_used_ends_it_for_a_person_to_mend(tmp_path: Path) -> None:
    broken = tmp_path / "registry.db"
    broken.write_text("no database" * 100)
    with Program("registry", "serve", "--auth", "off", "--store", f"sqlite://{broken}") as registry:
        assert registry.wait(15) == EXIT_UNUSABLE_STATE
        problem = registry.events("registry_start_failed")[0]["problem"]
        assert str(broken) in problem
        assert "restore FILE" in problem
    assert broken.read_text() == "no database" * 100


def test_a_second_registry_on_the_same_database_is_refused_naming_the_first(tmp_path: Path) -> None:
    place = f"sqlite://{tmp_path / 'registry.db'}"
    words = ("registry", "serve", "--auth", "off", "--store", place)
    with Registry("--store", place) as first, Program(*words) as second:
        assert second.wait(15) == EXIT_FAILED
        assert f"process {first.pid}" in second.events("registry_start_failed")[0]["problem"]
