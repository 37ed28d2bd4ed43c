"""The composed program, as a process of its own."""

import gc
import json
import signal
import time
import urllib.request

import pytest
from websockets.sync.client import connect

from gpu_agent.server.address import Address
from gpu_agent.server.serve import EXIT_FAILED, serve
from gpu_agent.server.settings import load
from tests.programs import Program, Registry


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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
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
        port = taken.getsockname()[1]
        settings = load({"node_listen": "127.0.0.1:0", "operator_listen": f"127.0.0.1:{port}"})
        assert await serve(settings) == EXIT_FAILED


def test_the_collector_is_left_alone_by_importing_this() -> None:
    assert gc.get_threshold()[0] < 50_000
