"""Claims and dispatch over HTTP, on a real registry with nodes on real sockets."""

from urllib.parse import quote

import httpx
import pytest

from gpu_agent.server.service import RegistryService
from tests.server.api_harness import problem
from tests.server.harness import Node, node

ODD_IDS = ["a/b", "a b", "ä/../?x", "%2F", "a/renew", "%", "a\nb", "💡", "#", "a+b&c=d"]


async def test_a_job_claims_one_slot_and_releases_it(api: httpx.AsyncClient, ready: Node) -> None:
    claim = (await api.post("/v1/claims", json={"job_id": "job-1"})).json()
    assert claim["node_id"] == ready.node_id
    assert {"gpu_uuids", "endpoint", "expires_at"} <= set(claim)
    assert (await api.post("/v1/claims", json={"job_id": "job-1"})).json()["node_id"] == ready.node_id
    assert (await api.delete("/v1/claims/job-1")).status_code == 204
    gone = await api.delete("/v1/claims/job-1")
    assert (gone.status_code, problem(gone)["code"]) == (404, "CLAIM_NOT_FOUND")


async def test_d06_a_job_that_no_node_can_take_is_409_with_counts_and_examples(
    api: httpx.AsyncClient, ready: Node
) -> None:
    refused = await api.post("/v1/claims", json={"job_id": "job-1", "gpu_count": 9})
    assert refused.status_code == 409
    document = problem(refused)
    assert (document["code"], document["counts"]) == ("NO_AVAILABLE_NODE", {"gpu_unavailable": 1})
    assert document["examples"]["gpu_unavailable"][0]["node_id"] == ready.node_id


async def test_a_job_for_several_nodes_is_refused_with_how_many_it_needs_and_how_many_could_take_it(
    api: httpx.AsyncClient, service: RegistryService, ready: Node
) -> None:
    assert ready.node_id
    gang = {"job_id": "gang", "nodes": 2, "gpu_count": 1}
    document = problem(await api.post("/v1/claims", json=gang))
    assert (document["nodes_needed"], document["nodes_eligible"], document["counts"]) == (2, 1, {})
    assert "(needs 2 nodes, 1 can take it)" in document["detail"]
    assert "POST /v1/dispatch/explain" in document["detail"]
    explained = (await api.post("/v1/dispatch/explain", json=gang)).json()
    assert (explained["nodes_needed"], explained["eligible"]) == (2, [ready.node_id])
    async with node(service) as other:
        await other.become_ready()
        await api.post(f"/v1/nodes/{other.node_id}/cordon", json={"reason": "repair"})
        detail = problem(await api.post("/v1/claims", json=gang))["detail"]
    assert "(needs 2 nodes, 1 can take it; 1 cordoned)" in detail


async def test_what_is_not_waited_for_says_so(api: httpx.AsyncClient, ready: Node) -> None:
    assert ready.node_id
    waits = {"job_id": "j", "gpu_count": 9, "wait_seconds": 30}
    detail = problem(await api.post("/v1/claims", json=waits))["detail"]
    assert detail.startswith("not waited: no node of today's fleet could ever take it, even empty; ")
    gang = {"job_id": "j", "nodes": 2, "wait_seconds": 30}
    detail = problem(await api.post("/v1/claims", json=gang))["detail"]
    assert detail.startswith("not waited: too few nodes of today's fleet could ever take it, even empty; ")
    at_once = problem(await api.post("/v1/claims", json={**waits, "wait_seconds": 0}))["detail"]
    assert at_once.startswith("no node can take this job (1 gpu_unavailable)")


@pytest.mark.parametrize("path", ["/v1/claims/job-1", "/v1/claims/job-1?claim_id=ZZ"])
async def test_a_release_with_a_body_is_refused_since_nothing_reads_it(
    api: httpx.AsyncClient, ready: Node, path: str
) -> None:
    assert ready.node_id
    await api.post("/v1/claims", json={"job_id": "job-1"})
    refused = await api.request("DELETE", path, json={"claim_id": "zz"})
    assert (refused.status_code, problem(refused)["code"]) == (422, "INVALID_REQUEST")
    assert "?claim_id=" in problem(refused)["detail"]
    assert [one["job_id"] for one in (await api.get("/v1/claims")).json()["claims"]] == ["job-1"]
    unknown = await api.request("DELETE", "/v1/claims/job-2/renew", json={})
    assert (unknown.status_code, problem(unknown)["code"]) == (404, "CLAIM_NOT_FOUND")


async def test_an_empty_fleet_says_how_to_get_a_node(api: httpx.AsyncClient) -> None:
    assert "gpu-agent run" in problem(await api.post("/v1/claims", json={"job_id": "j"}))["detail"]


@pytest.mark.parametrize("job_id", ODD_IDS)
async def test_a_claim_is_renewed_and_released_with_any_character_in_its_job_id(
    api: httpx.AsyncClient, ready: Node, job_id: str
) -> None:
    assert ready.node_id
    path = f"/v1/claims/{quote(job_id, safe='')}"
    assert (await api.post("/v1/claims", json={"job_id": job_id})).status_code == 200
    assert (await api.post(f"{path}/renew", json={})).json()["job_id"] == job_id
    assert (await api.delete(path)).status_code == 204


async def test_a_slash_in_a_job_id_names_no_other_job(api: httpx.AsyncClient, ready: Node) -> None:
    assert ready.node_id
    await api.post("/v1/claims", json={"job_id": "a"})
    for other in ("a%2Frenew", "a/b", "a%252Fb"):
        assert problem(await api.delete(f"{api.base_url}/v1/claims/{other}"))["code"] == "CLAIM_NOT_FOUND"
        renewed = await api.post(f"{api.base_url}/v1/claims/{other}/renew", json={})
        assert problem(renewed)["code"] == "CLAIM_NOT_FOUND"


async def test_a_renewal_extends_a_claim(api: httpx.AsyncClient, ready: Node) -> None:
    assert ready.node_id
    claimed = (await api.post("/v1/claims", json={"job_id": "job-1"})).json()
    renewed = (await api.post("/v1/claims/job-1/renew", json={})).json()
    assert renewed["node_id"] == claimed["node_id"]
    assert renewed["expires_at"] > claimed["expires_at"]
    assert problem(await api.post("/v1/claims/job-x/renew", json={}))["status"] == 404


async def test_claims_are_listed_by_job_page_by_page(api: httpx.AsyncClient, ready: Node) -> None:
    for job_id in ("c", "a", "b"):
        await api.post("/v1/claims", json={"job_id": job_id, "min_gpu_memory_mb": 64})
    first = (await api.get("/v1/claims?limit=2")).json()
    assert [claim["job_id"] for claim in first["claims"]] == ["a", "b"]
    assert (first["count"], first["next"]) == (2, "b")
    rest = (await api.get("/v1/claims?limit=2&after=b")).json()
    assert ([claim["job_id"] for claim in rest["claims"]], rest["next"]) == (["c"], None)
    (claim,) = rest["claims"]
    assert (claim["node_id"], claim["min_gpu_memory_mb"]) == (ready.node_id, 64)
    assert claim["expires_at"] > claim["granted_at"]


async def test_claims_can_be_listed_for_one_node(
    service: RegistryService, api: httpx.AsyncClient, ready: Node
) -> None:
    async with node(service) as other:
        await other.become_ready()
        for one in (ready, other):
            await api.post("/v1/claims", json={"job_id": one.node_id, "allowed_nodes": [one.node_id]})
        (claim,) = (await api.get("/v1/claims", params={"node_id": other.node_id})).json()["claims"]
    assert claim["job_id"] == other.node_id


@pytest.mark.parametrize(
    "wrong", [{"gpu_count": "1"}, {"public": "true"}, {"priority": 1.5}, {"min_gpu_memory_mb": True}]
)
async def test_a_value_of_another_type_is_refused(api: httpx.AsyncClient, wrong: dict[str, object]) -> None:
    refused = problem(await api.post("/v1/claims", json={"job_id": "j", **wrong}))
    assert refused["errors"][0]["path"] == f"$.{next(iter(wrong))}"


async def test_a_selection_reserves_nothing(api: httpx.AsyncClient, ready: Node) -> None:
    for _ in range(10):  # more often than the node has slots
        chosen = (await api.post("/v1/dispatch/select", json={})).json()
        assert (chosen["node_id"], chosen["job_id"]) == (ready.node_id, "dry-run")
        assert isinstance(chosen["score"], int)
    assert (await api.get("/v1/claims")).json()["count"] == 0


async def test_a_selection_for_a_job_with_a_claim_is_the_claimed_slot(
    api: httpx.AsyncClient, ready: Node
) -> None:
    await api.post("/v1/claims", json={"job_id": "job-1"})
    chosen = (await api.post("/v1/dispatch/select", json={"job_id": "job-1"})).json()
    assert (chosen["node_id"], chosen["score"]) == (ready.node_id, None)


async def test_d06_a_selection_without_a_node_is_refused_as_a_claim_is(
    api: httpx.AsyncClient, ready: Node
) -> None:
    job = {"job_id": "job-1", "required_models": ["not/installed"]}
    selected = await api.post("/v1/dispatch/select", json=job)
    assert selected.status_code == 409
    assert problem(selected) == problem(await api.post("/v1/claims", json=job))
    assert problem(selected)["examples"]["model_not_available"][0]["node_id"] == ready.node_id


async def test_a3_a_job_is_explained_node_by_node(api: httpx.AsyncClient, ready: Node) -> None:
    explained = (await api.post("/v1/dispatch/explain", json={"required_models": ["m"]})).json()
    assert (explained["eligible"], explained["excluded"]) == ([ready.node_id], [])
    unable = (await api.post("/v1/dispatch/explain", json={"labels": {"zone": "z"}})).json()
    (reason,) = unable["excluded"]
    assert (reason["node_id"], reason["reason"]) == (ready.node_id, "label_mismatch")
    assert reason["need"] != reason["have"]


async def test_a_page_of_excluded_nodes_says_what_would_end_each(
    api: httpx.AsyncClient, service: RegistryService, ready: Node
) -> None:
    async with node(service) as other:
        await other.become_ready()
        await api.post(f"/v1/nodes/{other.node_id}/cordon", json={"reason": "repair"})
        all_nodes = (await api.post("/v1/dispatch/explain", json={"gpu_count": 9})).json()
        pages = [
            (await api.post(f"/v1/dispatch/explain?limit=1&offset={offset}", json={"gpu_count": 9})).json()
            for offset in range(3)
        ]
    near, far = all_nodes["excluded"]
    assert [near["node_id"], far["node_id"]] == [ready.node_id, other.node_id]
    assert [near["clears_when"], far["clears_when"]] == [None, None]
    assert [page["excluded"] for page in pages] == [
        [{**near, "clears_when": "other GPUs are put in"}],
        [{**far, "clears_when": "an operator lifts the cordon"}],
        [],
    ]
    assert [page["counts"] for page in pages] == [all_nodes["counts"]] * 3
    refused = await api.post("/v1/dispatch/explain?limit=0", json={})
    assert (refused.status_code, "$.limit" in refused.json()["detail"]) == (422, True)


async def test_a_node_is_explained_with_every_reason(api: httpx.AsyncClient, ready: Node) -> None:
    path = f"/v1/nodes/{ready.node_id}/explain"
    assert not (await api.get(path)).json()["refuses_every_job"]
    await api.post(f"/v1/nodes/{ready.node_id}/cordon", json={"reason": "new driver"})
    explained = (await api.get(path, params={"model": "not/installed"})).json()
    assert explained["refuses_every_job"]
    cordon = explained["exclusions"][0]
    assert (cordon["reason"], "new driver" in cordon["have"]) == ("cordoned", True)
    assert cordon["refuses"]
    assert cordon["clears_when"]
    assert (explained["model"]["model_id"], explained["model"]["ready"]) == ("not/installed", False)
    assert problem(await api.get("/v1/nodes/node-x/explain"))["code"] == "UNKNOWN_NODE"


async def test_exclusions_are_counted_by_the_minute(api: httpx.AsyncClient, ready: Node) -> None:
    assert (await api.get("/v1/exclusions")).json() == {"windows": []}
    for number in range(3):
        await api.post("/v1/claims", json={"job_id": f"job-{number}", "gpu_count": 9})
    (window,) = (await api.get("/v1/exclusions")).json()["windows"]
    assert (window["failed"], window["counts"]) == (3, {"gpu_unavailable": 3})
    assert window["examples"]["gpu_unavailable"][0]["node_id"] == ready.node_id
