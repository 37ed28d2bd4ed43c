"""The fleet as people look at it, over HTTP: totals, lists in an order, what GPUs did lately."""

import asyncio

import httpx
import pytest

from gpu_agent.registry.job import Job
from gpu_agent.server.service import RegistryService
from tests.server.harness import Node, heartbeat, node, until

TWO = {
    "cpu_cores": 8,
    "memory_gb": 32,
    "gpus": [{"name": "NVIDIA H100", "memory_gb": 80, "uuid": f"GPU-{place}"} for place in range(2)],
}


async def two_gpus(service: RegistryService, other: Node, *, health: str = "ok") -> None:
    await other.register(capability_schema_version="1.1", hardware=TWO, hostname="b-2")
    figures = [{"uuid": f"GPU-{place}", "utilization_percent": 40.0, "power_w": 300.0} for place in range(2)]
    await other.send(heartbeat(other.node_id, gpus=[{**figures[0], "health": health}, figures[1]]))
    await until(
        lambda: (found := service.node(other.node_id)) is not None and bool(found.gpus[1].power_w),
        what="figures",
    )


@pytest.mark.usefixtures("ready")
async def test_the_totals_count_each_node_and_each_gpu_once(
    service: RegistryService, api: httpx.AsyncClient
) -> None:
    async with node(service) as other:
        await two_gpus(service, other, health="lost")
        figures = (await api.get("/v1/fleet")).json()
        assert (figures["nodes"]["ready"], figures["nodes"]["registering"], figures["attention"]) == (1, 1, 1)
        assert {name: count for name, count in figures["gpus"].items() if count} == {
            "free": 1,
            "lost": 1,
            "not_schedulable": 1,
        }
        assert {
            one["name"]: (one["gpus"], one["most_free_on_one_node"]) for one in figures["gpu_models"]
        } == {
            "NVIDIA H100": (2, 0),
            "NVIDIA L4": (1, 1),
        }
        assert figures["models"] == {"m": 1}
        claimed = await api.post("/v1/claims", json={"job_id": "job-1", "gpu_count": 1})
        assert claimed.status_code == 200
        figures = (await api.get("/v1/fleet")).json()
    assert (figures["gpus"]["free"], figures["gpus"]["claimed"], figures["slots_taken"]) == (0, 1, 1)
    assert {one["name"]: (one["free"], one["claimed"], one["idle"]) for one in figures["gpu_models"]} == {
        "NVIDIA H100": (0, 0, 0),
        "NVIDIA L4": (0, 1, 0),
    }


@pytest.mark.usefixtures("ready")
async def test_the_longest_wait_is_that_of_the_job_that_came_first(
    service: RegistryService, api: httpx.AsyncClient
) -> None:
    assert (await api.get("/v1/fleet")).json()["longest_wait_seconds"] is None
    await service.claim(Job(job_id="has-it", gpu_count=1))
    jobs = [Job(job_id=f"job-{place}", gpu_count=1, priority=place, wait_seconds=60.0) for place in range(2)]
    waiting = [asyncio.ensure_future(service.claim(job)) for job in jobs]
    await until(lambda: service.waiting_jobs == 2, what="two jobs wait")
    first = service.waiting("job-0")
    assert first is not None
    longest = (await api.get("/v1/fleet")).json()["longest_wait_seconds"]
    assert 0 <= longest <= service.clock.monotonic() - first.since
    for one in waiting:
        one.cancel()
    await asyncio.wait(waiting)


async def test_a_node_that_is_removed_counts_no_more(
    service: RegistryService, api: httpx.AsyncClient, ready: Node
) -> None:
    assert sum((await api.get("/v1/fleet")).json()["nodes"].values()) == 1
    await service.remove(ready.node_id)
    figures = (await api.get("/v1/fleet")).json()
    assert sum(figures["nodes"].values()) + sum(figures["gpus"].values()) + figures["slots"] == 0


async def test_lists_are_filtered_and_sorted_as_people_ask(
    service: RegistryService, api: httpx.AsyncClient, ready: Node
) -> None:
    async with node(service) as other:
        await two_gpus(service, other, health="lost")
        for asked, expected in {
            "sort=severity": [other, ready],
            "sort=free": [ready, other],
            "show=attention": [other],
            "show=free": [ready],
            "show=idle": [],
            "q=B-2": [other],
            "q=h100&sort=hostname": [other],
            "q=zone": [],
        }.items():
            listed = (await api.get(f"/v1/nodes?{asked}")).json()["nodes"]
            assert [one["node_id"] for one in listed] == [one.node_id for one in expected], asked
        first = (await api.get("/v1/nodes?sort=severity&limit=1")).json()
        second = (await api.get("/v1/nodes", params={"sort": "severity", "after": first["next"]})).json()
        assert [one["node_id"] for one in (*first["nodes"], *second["nodes"])] == [
            other.node_id,
            ready.node_id,
        ]
        assert second["next"] is None


@pytest.mark.parametrize(
    ("query", "status"), [("sort=free&after=x", 404), ("sort=shoe", 422), ("show=all", 422), ("q=", 422)]
)
async def test_what_is_no_list_is_refused_with_the_field(
    api: httpx.AsyncClient, query: str, status: int
) -> None:
    answer = await api.get(f"/v1/nodes?{query}")
    assert answer.status_code == status
    assert f"$.{query.rpartition('&')[2].partition('=')[0]}" in answer.json()["detail"]


async def test_each_gpu_says_what_it_is_for_jobs_since_when_and_what_to_do(
    service: RegistryService, api: httpx.AsyncClient
) -> None:
    async with node(service) as other:
        await other.register(capability_schema_version="1.1", hardware=TWO)
        hot = {"uuid": "GPU-0", "health": "degraded", "reasons": ["hw_thermal_slowdown", "not_known"]}
        for _ in range(2):
            await other.send(heartbeat(other.node_id, gpus=[hot, {"uuid": "GPU-1"}]))
        await until(
            lambda: (found := service.node(other.node_id)) is not None and found.gpus[0].health == "degraded",
            what="figures",
        )
        first, second = (await api.get(f"/v1/nodes/{other.node_id}")).json()["gpus"]
        await asyncio.sleep(0)
        again = (await api.get(f"/v1/nodes/{other.node_id}")).json()["gpus"][0]
    assert first["next_step"] == "check its fans, its airflow and the room's temperature"
    assert abs(first["since"] - again["since"]) < 0.01
    assert (second["since"], second["next_step"]) == (None, None)
    assert (first["status"], second["status"]) == ("not_schedulable", "not_schedulable")


async def test_the_history_has_the_points_of_each_gpu(
    service: RegistryService, api: httpx.AsyncClient
) -> None:
    async with node(service) as other:
        await two_gpus(service, other)
        history = (await api.get(f"/v1/nodes/{other.node_id}/gpu-history")).json()
        now = (await api.get(f"/v1/nodes/{other.node_id}")).json()["since"]
    assert [one["uuid"] for one in history["gpus"]] == ["GPU-0", "GPU-1"]
    ((point,), _) = [one["points"] for one in history["gpus"]]
    assert (point["utilization_percent"], point["power_w"], point["temperature_c"]) == (40.0, 300.0, None)
    assert abs(point["at"] - now) < 5


async def test_a_node_that_is_not_known_has_no_history(api: httpx.AsyncClient) -> None:
    answer = await api.get("/v1/nodes/node-X/gpu-history")
    assert (answer.status_code, answer.json()["code"]) == (404, "UNKNOWN_NODE")
