"""What routers and Prometheus read: live workers, as they change, and targets to scrape."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace

import httpx
import pytest

from gpu_agent.registry.job import Job
from gpu_agent.registry.tokens import Role
from gpu_agent.server.event_log import MOST_STREAMS_OF_ONE
from gpu_agent.server.service import RegistryService
from gpu_agent.wire.service_discovery import EndpointList
from tests.server.api_harness import bearer, operator_token, problem, serving
from tests.server.harness import QUICK, Node, node, running
from tests.waiting import patience

STREAM = {"Accept": "text/event-stream"}


@pytest.fixture
async def service() -> AsyncIterator[RegistryService]:
    """A registry that expects no heartbeat while a test lasts."""
    patient = replace(QUICK, heartbeat_interval_seconds=200.0, heartbeat_timeout_seconds=600.0)
    async with running(patient) as service:
        yield service


@pytest.fixture
async def worker(service: RegistryService) -> AsyncIterator[Node]:
    async with node(service) as worker:
        await worker.become_ready(endpoint="http://10.0.0.1:8000", labels={"zone": "a"}, hostname="h1")
        yield worker


async def listed(api: httpx.AsyncClient, query: str = "") -> list[str]:
    answer = await api.get(f"/v1/endpoints{query}")
    return [one.endpoint for one in EndpointList.model_validate_json(answer.content).endpoints]


async def changes(api: httpx.AsyncClient, query: str = "") -> AsyncGenerator[EndpointList, None]:
    async with api.stream("GET", f"/v1/endpoints{query}", headers=STREAM, timeout=patience(20)) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        async for line in answer.aiter_lines():
            if line.startswith("data: "):
                yield EndpointList.model_validate_json(line.removeprefix("data: "))


async def test_a_ready_node_with_the_model_is_listed_with_its_free_slots(
    api: httpx.AsyncClient, service: RegistryService, worker: Node
) -> None:
    await service.claim(Job(job_id="j"))
    (one,) = (await api.get("/v1/endpoints?model=m")).json()["endpoints"]
    assert one == {
        "node_id": worker.node_id,
        "hostname": "h1",
        "endpoint": "http://10.0.0.1:8000",
        "free_slots": 3,
        "max_concurrent_jobs": 4,
        "models": ["m"],
        "labels": {"zone": "a"},
    }


@pytest.mark.parametrize("held_by", ["cordon", "claim"])
async def test_a_worker_without_a_gpu_for_another_job_has_no_free_slot(
    api: httpx.AsyncClient, service: RegistryService, held_by: str
) -> None:
    gpu = {"name": "NVIDIA L4", "memory_gb": 24, "uuid": "GPU-1"}
    hardware = {"cpu_cores": 8, "memory_gb": 32, "gpus": [gpu]}
    async with node(service) as one:
        await one.become_ready(endpoint="http://h", hardware=hardware, capability_schema_version="1.1")
        if held_by == "cordon":
            await service.cordon_gpu(one.node_id, "GPU-1", reason="hot")
        else:
            await service.claim(Job(job_id="j", gpu_count=1))
        (listed,) = (await api.get("/v1/endpoints")).json()["endpoints"]
    assert (listed["free_slots"], listed["max_concurrent_jobs"]) == (0, 4)


async def test_a_node_without_the_model_the_label_or_an_endpoint_is_not_listed(
    api: httpx.AsyncClient, service: RegistryService, worker: Node
) -> None:
    assert worker.node_id
    async with node(service) as other:
        await other.become_ready()
        assert await listed(api) == ["http://10.0.0.1:8000"]
    assert await listed(api, "?model=n") == []
    assert await listed(api, "?label=zone%3Da") == ["http://10.0.0.1:8000"]
    assert await listed(api, "?label=zone%3Db") == []


@pytest.mark.parametrize("how", ["cordon", "drain", "disconnect"])
async def test_the_stream_says_when_a_worker_takes_no_requests_any_more(
    api: httpx.AsyncClient, service: RegistryService, worker: Node, how: str
) -> None:
    async with asyncio.timeout(patience(20)), aclosing(changes(api, "?model=m")) as stream:
        assert [one.node_id for one in (await anext(stream)).endpoints] == [worker.node_id]
        if how == "cordon":
            await service.cordon(worker.node_id, reason="r")
        elif how == "drain":
            await service.drain(worker.node_id)
        else:
            await worker.socket.close()
        assert (await anext(stream)).endpoints == ()


async def test_the_stream_says_when_slots_are_taken_and_when_a_worker_joins(
    api: httpx.AsyncClient, service: RegistryService, worker: Node
) -> None:
    async with asyncio.timeout(patience(30)), AsyncExitStack() as stack:
        stream = await stack.enter_async_context(aclosing(changes(api)))
        assert [one.free_slots for one in (await anext(stream)).endpoints] == [4]
        await service.claim(Job(job_id="j", allowed_nodes=(worker.node_id,)))
        assert [one.free_slots for one in (await anext(stream)).endpoints] == [3]
        other = await stack.enter_async_context(node(service))
        await other.become_ready(endpoint="10.0.0.2:8000")
        assert {one.endpoint for one in (await anext(stream)).endpoints} == {
            "http://10.0.0.1:8000",
            "10.0.0.2:8000",
        }


async def test_streams_of_endpoints_count_with_the_others_of_their_token() -> None:
    async with running(auth_on=True) as service, serving(service) as api, AsyncExitStack() as stack:
        headers = {**bearer(await operator_token(service, Role.READ)), **STREAM}
        for _ in range(MOST_STREAMS_OF_ONE):
            await stack.enter_async_context(api.stream("GET", "/v1/endpoints", headers=headers))
        refused = await api.get("/v1/endpoints", headers=headers)
        assert (refused.status_code, problem(refused)["code"]) == (429, "TOO_MANY_STREAMS_OF_TOKEN")
        del headers["Accept"]
        assert (await api.get("/v1/endpoints", headers=headers)).status_code == 200


async def test_a_stop_of_the_registry_ends_the_stream_at_once() -> None:
    async with running() as service, AsyncExitStack() as stack:
        async with serving(service) as api:
            stream = await stack.enter_async_context(aclosing(changes(api)))
            await anext(stream)
            began = asyncio.get_running_loop().time()
        assert asyncio.get_running_loop().time() - began < patience(1.5)


async def test_prometheus_gets_targets_with_labels_in_its_own_form(
    api: httpx.AsyncClient, service: RegistryService, worker: Node
) -> None:
    async with node(service) as other, node(service) as silent:
        await silent.become_ready()
        await other.become_ready(
            endpoint="10.0.0.2:8000",
            labels={"metrics_endpoint": "https://10.0.0.2:9400/gpu/metrics", "gpu-kind": "L4"},
        )
        answer = await api.get("/v1/http_sd")
        assert answer.headers["content-type"] == "application/json"
        by_target = {one["targets"][0]: one["labels"] for one in answer.json()}
        assert by_target["10.0.0.1:8000"] == {
            "__meta_gpu_agent_node_id": worker.node_id,
            "__meta_gpu_agent_hostname": "h1",
            "__meta_gpu_agent_status": "ready",
            "__meta_gpu_agent_label_zone": "a",
            "__scheme__": "http",
        }
        labels = by_target["10.0.0.2:9400"]
        assert (labels["__scheme__"], labels["__metrics_path__"]) == ("https", "/gpu/metrics")
        assert labels["__meta_gpu_agent_label_gpu_kind"] == "L4"
        assert len(by_target) == 2
        assert all(isinstance(value, str) for value in json.loads(answer.content)[0]["labels"].values())
