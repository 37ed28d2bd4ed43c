"""The metrics in Prometheus' text format."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from gpu_agent.server import metrics
from gpu_agent.server.limits import Limits
from gpu_agent.server.metrics import RequestMetrics, exposition, request_exposition
from gpu_agent.server.service import RegistryService
from gpu_agent.version import __version__
from tests.server.disks import FailingStore
from tests.server.harness import Node, heartbeat, node, registration, running


async def samples(service: RegistryService, requests: RequestMetrics | None = None) -> dict[str, float]:
    text = (await exposition(service.health)).decode()
    if requests is not None:
        text += request_exposition(requests).decode()
    return {
        f"{sample.name}{sorted(sample.labels.items())}": sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_nodes_heartbeats_and_refusals_are_counted_with_their_labels(
    service: RegistryService, ready: Node
) -> None:
    async with node(service) as poor:
        await poor.send(registration(hardware={"cpu_cores": 1, "memory_gb": 1}))
        assert (await poor.receive())["code"] == "GPU_REQUIRED"
    found = await samples(service)
    assert found["gpu_registry_ready[]"] == 1
    assert found["gpu_registry_nodes[('status', 'ready')]"] == 1
    assert found["gpu_registry_nodes[('status', 'offline')]"] == 0
    assert found["gpu_registry_gpus[('health', 'ok'), ('name', 'NVIDIA L4')]"] == 1
    assert found["gpu_registry_registrations_total[]"] == 1
    assert found["gpu_registry_node_refusals_total[('code', 'GPU_REQUIRED')]"] == 1
    change = "[('from', 'registering'), ('reason_code', 'health_checks_passed'), ('to', 'ready')]"
    assert found[f"gpu_registry_status_changes_total{change}"] == 1
    assert found["gpu_registry_heartbeats_total[]"] == 3
    assert found["gpu_registry_connections[]"] >= 1
    assert found["gpu_registry_event_subscribers[]"] == 0
    assert found[f"gpu_registry_build_info[('version', '{__version__}')]"] == 1
    assert ready.node_id


async def test_every_refusal_that_a_node_receives_is_counted_and_known_codes_begin_at_0() -> None:
    store = FailingStore()
    async with running(store=store, limits=Limits(message_burst=3)) as service, node(service) as peer:
        before = await samples(service)
        answers: list[dict[str, Any]] = []
        for message in (
            {"type": "node_register"},
            registration(capability_schema_version="9.9"),
            heartbeat("node-1"),
            registration(),
            registration(),
        ):
            store.full = len(answers) == 3
            await peer.send(message)
            answers.append(await peer.receive())
        after = await samples(service)
    received = Counter(answer["code"] for answer in answers)
    assert set(received) == {
        "INVALID_MESSAGE",
        "INVALID_CAPABILITY_SCHEMA",
        "UNKNOWN_NODE",
        "REGISTRY_BUSY",
        "RATE_LIMITED",
    }
    for code, count in received.items():
        series = f"gpu_registry_node_refusals_total[('code', '{code}')]"
        assert (before[series], after[series]) == (0, count), code


async def test_a_histogram_counts_values_up_to_each_bound(service: RegistryService) -> None:
    bounds = ("0.01", "0.1", "+Inf")
    before = await samples(service)
    for seconds in (0.005, 0.05, 30.0):
        service.health.meter.lagged(seconds)
    after = await samples(service)
    name = "gpu_registry_event_loop_lag_seconds"
    counts = [f"{name}_bucket[('le', '{bound}')]" for bound in bounds]
    assert [after[count] - before[count] for count in counts] == [1, 2, 3]
    assert after[f"{name}_sum[]"] - before[f"{name}_sum[]"] >= 30.055


async def test_figures_of_a_period_are_absent_before_its_end(service: RegistryService) -> None:
    assert "gpu_registry_heartbeats_per_second[]" not in await samples(service)
    service.health.meter.selected(0.000_25)
    service.performance()
    found = await samples(service)
    assert found["gpu_registry_heartbeats_per_second[]"] == 0
    assert found["gpu_registry_select_p99_seconds[]"] == 0.000_25


async def test_requests_of_the_api_are_measured_by_route_method_and_status(service: RegistryService) -> None:
    requests = RequestMetrics()
    requests.seconds.labels("GET", "/v1/nodes/{node_id}", "404").observe(0.2)
    found = await samples(service, requests)
    labels = "('method', 'GET'), ('route', '/v1/nodes/{node_id}'), ('status', '404')"
    assert found[f"gpu_registry_http_request_seconds_sum[{labels}]"] == 0.2
    assert found[f"gpu_registry_http_request_seconds_count[{labels}]"] == 1


def test_names_begin_alike_and_state_base_units() -> None:
    names = [one.full_name for one in metrics.METRICS]
    assert all(name.startswith(metrics.PREFIX) for name in names)
    assert not [name for name in names if re.search(r"_(ms|us|milliseconds|mb)$", name)]


def test_the_alerts_use_metrics_that_there_are() -> None:
    rules = (Path(__file__).parents[2] / "examples" / "prometheus_alerts.yml").read_text(encoding="utf-8")
    names = {one.full_name for one in (*metrics.METRICS, *metrics.INSTANCE_METRICS)}
    used = re.findall(r"gpu_registry_\w+", rules)
    assert len(used) == 7
    assert set(used) <= names
