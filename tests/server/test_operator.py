"""The operator API over HTTP, on the true registry with nodes on real sockets."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from gpu_agent.server.address import bound_address
from gpu_agent.server.operator import PROBLEM_JSON, OperatorServer, application
from gpu_agent.server.service import RegistryService
from tests.server.harness import LOOPBACK, Node, node, running


@asynccontextmanager
async def serving(service: RegistryService) -> AsyncIterator[httpx.AsyncClient]:
    listener = LOOPBACK.bind()
    server = OperatorServer(service, listener, address=LOOPBACK)
    serving = asyncio.ensure_future(server.serve())
    try:
        async with httpx.AsyncClient(base_url=f"http://{bound_address(listener)}", trust_env=False) as client:
            yield client
    finally:
        server.stop()
        await asyncio.wait_for(serving, 5)


@pytest.fixture
async def service() -> AsyncIterator[RegistryService]:
    async with running() as service:
        yield service


@pytest.fixture
async def api(service: RegistryService) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(service) as client:
        yield client


@pytest.fixture
async def ready(service: RegistryService) -> AsyncIterator[Node]:
    async with node(service) as ready:
        await ready.become_ready(labels={"zone": "a"})
        yield ready


def problem(response: httpx.Response) -> dict[str, Any]:
    assert response.headers["content-type"] == PROBLEM_JSON
    document: dict[str, Any] = response.json()
    assert document["status"] == response.status_code
    assert document["detail"]
    return document


async def test_healthz_counts_nodes_and_connections(api: httpx.AsyncClient, ready: Node) -> None:
    answer = (await api.get("/healthz")).json()
    assert (answer["status"], answer["nodes"], answer["connections"]) == ("ok", 1, 1)
    assert ready.node_id


async def test_an_empty_registry_lists_no_nodes(api: httpx.AsyncClient) -> None:
    assert (await api.get("/v1/nodes")).json() == {"nodes": []}


async def test_the_list_shows_what_the_issue_names(api: httpx.AsyncClient, ready: Node) -> None:
    (listed,) = (await api.get("/v1/nodes")).json()["nodes"]
    assert {
        "node_id",
        "status",
        "reason_code",
        "reason",
        "since",
        "connected",
        "gpus",
        "installed_models",
        "in_flight_jobs",
        "max_concurrent_jobs",
        "accept_public_jobs",
        "last_beat_age_seconds",
        "simulated",
    } <= set(listed)
    assert (listed["node_id"], listed["status"], listed["connected"]) == (ready.node_id, "ready", True)
    assert [gpu["name"] for gpu in listed["gpus"]] == ["NVIDIA L4"]
    assert listed["installed_models"][0]["model_id"] == "m"


async def test_many_nodes_are_one_list(service: RegistryService, api: httpx.AsyncClient) -> None:
    async with node(service) as first, node(service) as second, node(service) as third:
        ids = {(await one.register())["node_id"] for one in (first, second, third)}
        listed = (await api.get("/v1/nodes")).json()["nodes"]
    assert [one["node_id"] for one in listed] == sorted(ids)


async def test_a_node_is_shown_with_its_checks_history_labels_and_features(
    api: httpx.AsyncClient, ready: Node
) -> None:
    shown = (await api.get(f"/v1/nodes/{ready.node_id}")).json()
    assert shown["status"] == "ready"
    assert shown["labels"] == {"zone": "a"}
    assert {"checks", "clears_when", "events", "labels", "features", "probe_age_seconds"} <= set(shown)
    assert "node_registered" in [event["event"] for event in shown["events"]]


async def test_an_unknown_node_is_404_with_the_next_step(api: httpx.AsyncClient) -> None:
    for response in (
        await api.get("/v1/nodes/node-x"),
        await api.post("/v1/nodes/node-x/drain", json={}),
    ):
        assert response.status_code == 404
        assert problem(response)["code"] == "UNKNOWN_NODE"


async def test_a_job_is_placed_once_explained_and_released(api: httpx.AsyncClient, ready: Node) -> None:
    claim = (await api.post("/v1/claims", json={"job_id": "job-1"})).json()
    assert claim["node_id"] == ready.node_id
    assert {"gpu_uuids", "endpoint", "expires_at"} <= set(claim)
    assert (await api.post("/v1/claims", json={"job_id": "job-1"})).json()["node_id"] == ready.node_id
    explained = (await api.post("/v1/dispatch/explain", json={"required_models": ["nobody/has"]})).json()
    assert explained["counts"] == {"model_not_available": 1}
    assert explained["excluded"][0]["node_id"] == ready.node_id
    assert (await api.delete("/v1/claims/job-1")).status_code == 204
    gone = await api.delete("/v1/claims/job-1")
    assert (gone.status_code, problem(gone)["code"]) == (404, "CLAIM_NOT_FOUND")


async def test_d06_nobody_left_is_409_with_counts_and_examples(api: httpx.AsyncClient, ready: Node) -> None:
    refused = await api.post("/v1/claims", json={"job_id": "job-1", "gpu_count": 9})
    assert refused.status_code == 409
    document = problem(refused)
    assert (document["code"], document["counts"]) == ("NO_AVAILABLE_NODE", {"gpu_unavailable": 1})
    assert document["examples"]["gpu_unavailable"][0]["node_id"] == ready.node_id


async def test_an_empty_fleet_says_how_to_get_a_node(api: httpx.AsyncClient) -> None:
    assert "gpu-agent run" in problem(await api.post("/v1/claims", json={"job_id": "j"}))["detail"]


async def test_s05_a_drain_answers_with_the_node_and_its_new_status(
    api: httpx.AsyncClient, ready: Node
) -> None:
    await api.post("/v1/claims", json={"job_id": "job-1"})
    answer = await api.post(f"/v1/nodes/{ready.node_id}/drain", json={"deadline_seconds": 60, "reason": "r"})
    assert answer.json()["status"] == "draining"
    assert answer.json()["drain"]["reason"] == "r"
    await api.delete("/v1/claims/job-1")
    assert (await api.get(f"/v1/nodes/{ready.node_id}")).json()["status"] == "offline"


async def test_a_request_that_cannot_be_read_names_the_path(api: httpx.AsyncClient) -> None:
    refused = await api.post("/v1/claims", json={"job_id": "j", "gpu_count": "many"})
    assert refused.status_code == 422
    assert problem(refused)["errors"][0]["path"] == "$.gpu_count"


async def test_a_body_that_is_no_json_is_a_problem_too(api: httpx.AsyncClient) -> None:
    headers = {"content-type": "application/json"}
    assert problem(await api.post("/v1/claims", content="{", headers=headers))["code"] == "INVALID_REQUEST"


@pytest.mark.parametrize("body", [b"[" * 100_000, b"{", b"\xff"], ids=["deep", "torn", "not UTF-8"])
async def test_a_body_that_is_no_json_names_the_whole_as_its_place(
    api: httpx.AsyncClient, body: bytes
) -> None:
    answer = await api.post("/v1/claims", content=body, headers={"Content-Type": "application/json"})
    assert "$: not valid JSON" in problem(answer)["detail"]


@pytest.mark.parametrize("chunked", [False, True], ids=["stated length", "chunked"])
async def test_a_body_over_the_limit_is_refused_unread(api: httpx.AsyncClient, *, chunked: bool) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(64):
            yield b"x" * 65536

    content = pieces() if chunked else b"x" * 4 * 2**20
    answer = await api.post("/v1/claims", content=content, headers={"Content-Type": "application/json"})
    assert problem(answer)["code"] == "BODY_TOO_LARGE"


async def test_a_job_is_released_whatever_its_id_is_made_of(api: httpx.AsyncClient, ready: Node) -> None:
    assert ready.node_id
    for job_id in ("a/b", "a b", "ä/../?x", "%2F"):
        assert (await api.post("/v1/claims", json={"job_id": job_id})).status_code == 200
        assert (await api.delete(f"/v1/claims/{quote(job_id, safe='')}")).status_code == 204


async def test_a_place_is_kept_by_renewing_it(api: httpx.AsyncClient, ready: Node) -> None:
    assert ready.node_id
    placed = (await api.post("/v1/claims", json={"job_id": "a/b"})).json()
    renewed = (await api.post("/v1/claims/a%2Fb/renew", json={})).json()
    assert renewed["node_id"] == placed["node_id"]
    assert renewed["expires_at"] > placed["expires_at"]
    assert problem(await api.post("/v1/claims/nobody/renew", json={}))["status"] == 404


async def test_a_drained_node_is_taken_back(api: httpx.AsyncClient, ready: Node) -> None:
    path = f"/v1/nodes/{ready.node_id}"
    assert (await api.post(f"{path}/drain", json={})).json()["status"] == "offline"
    resumed = (await api.post(f"{path}/resume", json={})).json()
    assert (resumed["status"], resumed["reason_code"]) == ("registering", "resumed")
    assert problem(await api.post("/v1/nodes/nobody/resume", json={}))["status"] == 404


async def test_a_load_balancer_may_ask_with_head(api: httpx.AsyncClient) -> None:
    assert (await api.head("/healthz")).status_code == 200


@pytest.mark.parametrize("asked", [("GET", "/nope", 404), ("PUT", "/v1/nodes", 405)])
async def test_what_there_is_not_is_a_problem_that_says_where_to_look(
    api: httpx.AsyncClient, asked: tuple[str, str, int]
) -> None:
    method, path, status = asked
    response = await api.request(method, path)
    assert response.status_code == status
    assert "/docs" in problem(response)["detail"]


async def test_a_foreign_page_is_refused_before_anything_is_done(api: httpx.AsyncClient, ready: Node) -> None:
    path = f"/v1/nodes/{ready.node_id}/drain"
    rebound = await api.post(path, json={}, headers={"host": "evil.example"})
    form = await api.post(path, content="{}", headers={"content-type": "text/plain"})
    assert problem(rebound)["code"] == "HOST_NOT_ALLOWED"
    assert problem(form)["code"] == "JSON_REQUIRED"
    assert (await api.get(f"/v1/nodes/{ready.node_id}")).json()["status"] == "ready"


async def test_the_api_describes_itself(service: RegistryService) -> None:
    described = application(service).openapi()
    assert set(described["paths"]) == {
        "/healthz",
        "/v1/nodes",
        "/v1/nodes/{node_id}",
        "/v1/nodes/{node_id}/drain",
        "/v1/nodes/{node_id}/resume",
        "/v1/dispatch/explain",
        "/v1/claims",
        "/v1/claims/{job_id}",
        "/v1/claims/{job_id}/renew",
    }
