"""The metrics in Prometheus' text format."""

import asyncio
import re
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from websockets.exceptions import InvalidStatus

from gpu_agent.registry.job import Job
from gpu_agent.server import metrics
from gpu_agent.server.limits import Limits
from gpu_agent.server.metrics import RequestMetrics, exposition, request_exposition
from gpu_agent.server.service import RegistryService
from gpu_agent.version import __version__
from gpu_agent.wire.api import ClaimView
from tests.server.disks import FailingStore
from tests.server.harness import QUICK, Node, heartbeat, node, registration, running
from tests.waiting import patience


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


async def test_connections_are_counted_by_why_they_were_refused() -> None:
    async with running(auth_on=True) as service:
        before = await samples(service)
        for token in (None, "gpuj_00000000_guess", "gpuj_00000000_guess"):
            with pytest.raises(InvalidStatus):
                async with node(service, token=token):
                    pass
        after = await samples(service)
    counts = {
        reason: after[series] - before[series]
        for reason in ("no_token", "unknown_token", "operator_token", "token_used_up", "web_page")
        for series in [f"gpu_registry_handshake_refusals_total[('reason', '{reason}')]"]
    }
    assert counts == {
        "no_token": 1,
        "unknown_token": 2,
        "operator_token": 0,
        "token_used_up": 0,
        "web_page": 0,
    }


async def test_idle_claims_gpus_used_without_one_and_the_longest_wait_are_shown() -> None:
    gpus = [{"name": "NVIDIA L4", "memory_gb": 24, "uuid": f"GPU-{number}"} for number in range(2)]
    hardware = {"cpu_cores": 8, "memory_gb": 32, "gpus": gpus}
    watched = replace(QUICK, claim_idle_seconds=0.1)
    names = ("gpu_registry_claims_idle[]", "gpu_registry_gpus_used_without_claim[]")
    async with running(watched) as service, node(service) as peer:
        await peer.become_ready(hardware=hardware, max_concurrent_jobs=8)
        claim = await service.claim(Job(job_id="job", gpu_count=1))
        assert isinstance(claim, ClaimView)
        (claimed,) = claim.gpu_uuids or ()
        found = await samples(service)
        assert [found[name] for name in (*names, "gpu_registry_longest_wait_seconds[]")] == [0, 0, 0]
        waiting = asyncio.ensure_future(service.claim(Job(job_id="next", gpu_count=2, wait_seconds=60)))
        async with asyncio.timeout(patience(10)):
            while [found[name] for name in names] != [1, 1]:
                uses = [(one["uuid"], int(one["uuid"] != claimed)) for one in gpus]
                figures = {"utilization_percent": 0.0}
                await peer.heartbeat(
                    gpus=[{"uuid": uuid, "processes": count, **figures} for uuid, count in uses]
                )
                await asyncio.sleep(0.05)
                found = await samples(service)
        assert 0.1 < found["gpu_registry_longest_wait_seconds[]"] < 60
        waiting.cancel()
        await asyncio.wait({waiting})


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
    requests.observe(0.2, method="GET", route="/v1/nodes/{node_id}", status=404)
    found = await samples(service, requests)
    labels = "('method', 'GET'), ('route', '/v1/nodes/{node_id}'), ('status', '404')"
    assert found[f"gpu_registry_http_request_seconds_sum[{labels}]"] == 0.2
    assert found[f"gpu_registry_http_request_seconds_count[{labels}]"] == 1


async def test_requests_that_fail_are_counted_from_0_on(service: RegistryService) -> None:
    requests = RequestMetrics()
    before = await samples(service, requests)
    for status in (200, 401, 401, 500):
        requests.observe(0.1, method="GET", route="/v1/nodes", status=status)
    after = await samples(service, requests)
    unauthorized, faults = (f"gpu_registry_http_failures_total[('status', '{one}')]" for one in (401, 500))
    assert (before[unauthorized], before[faults]) == (0, 0)
    assert (after[unauthorized], after[faults]) == (2, 1)


def test_names_begin_alike_and_state_base_units() -> None:
    names = [one.full_name for one in metrics.METRICS]
    assert all(name.startswith(metrics.PREFIX) for name in names)
    assert not [name for name in names if re.search(r"_(ms|us|milliseconds|mb)$", name)]
