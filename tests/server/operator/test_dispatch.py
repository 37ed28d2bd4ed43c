"""Dispatch questioned over HTTP, on the true registry with nodes on real sockets."""

import httpx

from tests.server.api import problem
from tests.server.harness import Node


async def test_a_job_is_tried_without_reserving_anything(api: httpx.AsyncClient, ready: Node) -> None:
    for _ in range(10):  # more often than the node has places
        chosen = (await api.post("/v1/dispatch/select", json={})).json()
        assert (chosen["node_id"], chosen["job_id"]) == (ready.node_id, "dry-run")
        assert isinstance(chosen["score"], int)
    assert (await api.get("/v1/claims")).json()["count"] == 0


async def test_a_job_that_holds_a_place_is_told_that_one(api: httpx.AsyncClient, ready: Node) -> None:
    await api.post("/v1/claims", json={"job_id": "job-1"})
    chosen = (await api.post("/v1/dispatch/select", json={"job_id": "job-1"})).json()
    assert (chosen["node_id"], chosen["score"]) == (ready.node_id, None)


async def test_d06_a_job_that_finds_nobody_when_tried_is_refused_as_a_claim_is(
    api: httpx.AsyncClient, ready: Node
) -> None:
    asked = {"job_id": "job-1", "required_models": ["nobody/has"]}
    tried = await api.post("/v1/dispatch/select", json=asked)
    assert tried.status_code == 409
    assert problem(tried) == problem(await api.post("/v1/claims", json=asked))
    assert problem(tried)["examples"]["model_not_available"][0]["node_id"] == ready.node_id


async def test_a3_a_job_is_explained_node_by_node(api: httpx.AsyncClient, ready: Node) -> None:
    able = (await api.post("/v1/dispatch/explain", json={"required_models": ["m"]})).json()
    assert (able["able"], able["excluded"]) == ([ready.node_id], [])
    unable = (await api.post("/v1/dispatch/explain", json={"labels": {"zone": "z"}})).json()
    (reason,) = unable["excluded"]
    assert (reason["node_id"], reason["reason"]) == (ready.node_id, "label_mismatch")
    assert reason["need"] != reason["have"]


async def test_a_node_says_why_it_gets_no_job(api: httpx.AsyncClient, ready: Node) -> None:
    path = f"/v1/nodes/{ready.node_id}/why"
    assert not (await api.get(path)).json()["refuses_every_job"]
    await api.post(f"/v1/nodes/{ready.node_id}/cordon", json={"reason": "new driver"})
    told = (await api.get(path, params={"model": "nobody/has"})).json()
    assert told["refuses_every_job"]
    cordon = told["objections"][0]
    assert (cordon["reason"], "new driver" in cordon["have"]) == ("cordoned", True)
    assert cordon["refuses"]
    assert cordon["clears_when"]
    assert (told["model"]["model_id"], told["model"]["ready"]) == ("nobody/has", False)
    assert problem(await api.get("/v1/nodes/nobody/why"))["code"] == "UNKNOWN_NODE"


async def test_what_jobs_failed_on_is_counted_by_the_minute(api: httpx.AsyncClient, ready: Node) -> None:
    assert (await api.get("/v1/exclusions")).json() == {"windows": []}
    for number in range(3):
        await api.post("/v1/claims", json={"job_id": f"job-{number}", "gpu_count": 9})
    (window,) = (await api.get("/v1/exclusions")).json()["windows"]
    assert (window["failed"], window["counts"]) == (3, {"gpu_unavailable": 3})
    assert window["examples"]["gpu_unavailable"][0]["node_id"] == ready.node_id
