"""The registry about itself, over HTTP."""

from dataclasses import fields

import httpx

from gpu_agent.registry.thresholds import Thresholds
from gpu_agent.server.service import RegistryService
from tests.server.api import problem, serving
from tests.server.harness import Node, running


async def test_healthz_counts_nodes_and_connections(api: httpx.AsyncClient, ready: Node) -> None:
    answer = (await api.get("/healthz")).json()
    assert (answer["status"], answer["nodes"], answer["connections"]) == ("ok", 1, 1)
    assert ready.node_id


async def test_a_load_balancer_may_ask_with_head(api: httpx.AsyncClient) -> None:
    assert (await api.head("/healthz")).status_code == 200


async def test_a_registry_that_runs_is_ready(api: httpx.AsyncClient) -> None:
    answer = await api.get("/readyz")
    assert answer.status_code == 200
    assert answer.json()["ready"]
    assert [check["ok"] for check in answer.json()["checks"]] == [True, True, True]


async def test_a_registry_that_stops_says_which_check_fails(
    service: RegistryService, api: httpx.AsyncClient
) -> None:
    await service.stop()
    answer = await api.get("/readyz")
    assert answer.status_code == 503
    document = problem(answer)
    assert document["code"] == "NOT_READY"
    assert [check["name"] for check in document["checks"] if not check["ok"]] == ["fleet", "nodes"]
    assert "stopping" in document["detail"]
    assert (await api.head("/readyz")).status_code == 503


async def test_prometheus_is_told_the_figures(api: httpx.AsyncClient, ready: Node) -> None:
    answer = await api.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    assert 'gpu_registry_nodes{status="ready"} 1.0' in answer.text
    assert ready.node_id not in answer.text


async def test_thresholds_are_shown_as_they_are_in_force() -> None:
    async with running(Thresholds(claim_ttl_seconds=7.0)) as service, serving(service) as api:
        shown = {one["name"]: one for one in (await api.get("/v1/thresholds")).json()["thresholds"]}
    assert list(shown) == [one.name for one in fields(Thresholds)]
    ttl = shown["claim_ttl_seconds"]
    assert (ttl["value"], ttl["unit"], ttl["default"]) == (7.0, "seconds", 60.0)
    assert shown["required_models"]["value"] == []
    assert all(one["meaning"] for one in shown.values())
