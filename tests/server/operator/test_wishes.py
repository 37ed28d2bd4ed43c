"""Operators' wishes over HTTP, on the true registry with nodes on real sockets."""

import httpx
import pytest

from gpu_agent.server.service import RegistryService
from tests.server.api import problem
from tests.server.harness import Node, until


async def test_s05_a_drain_answers_with_the_node_and_its_new_status(
    api: httpx.AsyncClient, ready: Node
) -> None:
    await api.post("/v1/claims", json={"job_id": "job-1"})
    answer = await api.post(f"/v1/nodes/{ready.node_id}/drain", json={"deadline_seconds": 60, "reason": "r"})
    assert answer.json()["status"] == "draining"
    assert answer.json()["drain"]["reason"] == "r"
    await api.delete("/v1/claims/job-1")
    assert (await api.get(f"/v1/nodes/{ready.node_id}")).json()["status"] == "offline"


async def test_a_drained_node_is_taken_back(api: httpx.AsyncClient, ready: Node) -> None:
    path = f"/v1/nodes/{ready.node_id}"
    assert (await api.post(f"{path}/drain", json={})).json()["status"] == "offline"
    resumed = (await api.post(f"{path}/resume", json={})).json()
    assert (resumed["status"], resumed["reason_code"]) == ("registering", "resumed")


async def test_a_cordon_keeps_jobs_away_until_it_is_lifted(api: httpx.AsyncClient, ready: Node) -> None:
    path = f"/v1/nodes/{ready.node_id}"
    cordoned = (await api.post(f"{path}/cordon", json={"reason": "new driver"})).json()
    assert (cordoned["status"], cordoned["cordoned"]) == ("ready", "new driver")
    assert problem(await api.post("/v1/claims", json={"job_id": "j"}))["counts"] == {"cordoned": 1}
    assert (await api.post(f"{path}/uncordon", json={})).json()["cordoned"] is None
    assert (await api.post("/v1/claims", json={"job_id": "j"})).status_code == 200


@pytest.mark.parametrize("wish", ["refresh", "reregister"])
async def test_a_connected_node_is_told_what_to_do(
    service: RegistryService, api: httpx.AsyncClient, ready: Node, wish: str
) -> None:
    answer = await api.post(f"/v1/nodes/{ready.node_id}/{wish}", json={})
    assert answer.json()["node_id"] == ready.node_id
    assert (await ready.hear_type("node_control"))["command"] == wish
    await ready.socket.close()
    await until(lambda: service.size.connections == 0, what="the node gone")
    refused = await api.post(f"/v1/nodes/{ready.node_id}/{wish}", json={})
    assert (refused.status_code, problem(refused)["code"]) == (409, "NODE_NOT_CONNECTED")


async def test_a_node_is_forgotten_and_sent_away(api: httpx.AsyncClient, ready: Node) -> None:
    path = f"/v1/nodes/{ready.node_id}"
    assert (await api.delete(path)).status_code == 204
    assert problem(await api.get(path))["code"] == "UNKNOWN_NODE"
    assert (await ready.closed())[0] == 1001


@pytest.mark.parametrize("wish", ["drain", "resume", "cordon", "uncordon", "refresh", "reregister"])
async def test_a_wish_for_a_node_that_nobody_knows_is_404(api: httpx.AsyncClient, wish: str) -> None:
    assert problem(await api.post(f"/v1/nodes/nobody/{wish}", json={}))["code"] == "UNKNOWN_NODE"


async def test_a_node_that_nobody_knows_cannot_be_forgotten(api: httpx.AsyncClient) -> None:
    assert problem(await api.delete("/v1/nodes/nobody"))["status"] == 404


async def test_a_wish_that_says_nothing_may_come_without_a_body(api: httpx.AsyncClient, ready: Node) -> None:
    headers = {"Content-Type": "application/json"}
    answer = await api.post(f"/v1/nodes/{ready.node_id}/uncordon", headers=headers)
    assert answer.status_code == 200
    assert problem(await api.post(f"/v1/nodes/{ready.node_id}/uncordon", json={"a": 1}))["status"] == 422
