"""Claims over HTTP that wait, end, are renewed together, and belong to somebody; cordons of one GPU."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from gpu_agent.registry.queue import MOST_OF_ONE_OWNER
from gpu_agent.registry.tokens import Role
from gpu_agent.server.service import RegistryService
from gpu_agent.wire.api import NewToken
from tests.server.api_harness import bearer, problem, serving
from tests.server.harness import Node, node, running, until

GPU = "GPU-0000aaaa"
ONE_GPU = {
    "cpu_cores": 8,
    "memory_gb": 64,
    "gpus": [{"name": "NVIDIA H100", "memory_gb": 80, "uuid": GPU, "index": 4}],
}
WHOLE = {"gpu_count": 1}


@pytest.fixture
async def gpu_node(service: RegistryService) -> AsyncIterator[Node]:
    async with node(service) as one:
        await one.become_ready(
            hardware=ONE_GPU, capability_schema_version="1.1", hostname="gpu-host-1", endpoint="10.0.0.1:9000"
        )
        yield one


async def claimed(api: httpx.AsyncClient, job_id: str, **demands: object) -> dict[str, Any]:
    answer = await api.post("/v1/claims", json={"job_id": job_id, **demands})
    assert answer.status_code == 200, answer.text
    claim: dict[str, Any] = answer.json()
    return claim


def refusal(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, str(problem(answer)["code"])


# What a claim shows


async def test_a_claim_shows_its_gpus_by_uuid_and_by_the_index_of_the_driver(
    api: httpx.AsyncClient, gpu_node: Node
) -> None:
    claim = await claimed(api, "job-1", **WHOLE, ttl_seconds=30)
    expected = {
        "node_id": gpu_node.node_id,
        "hostname": "gpu-host-1",
        "gpu_uuids": [GPU],
        "gpu_indices": [4],
        "endpoint": "10.0.0.1:9000",
    }
    assert claim["nodes"] == [expected]
    assert (claim["node_id"], claim["gpu_uuids"], claim["endpoint"]) == (
        gpu_node.node_id,
        [GPU],
        "10.0.0.1:9000",
    )
    assert (claim["state"], claim["ended_at"], claim["ttl_seconds"]) == ("active", None, 30.0)
    assert 29 < claim["expires_in_seconds"] <= 30


async def test_a_gang_is_one_claim_on_several_nodes(
    service: RegistryService, api: httpx.AsyncClient, ready: Node
) -> None:
    async with node(service) as other:
        await other.become_ready()
        claim = await claimed(api, "job-1", **WHOLE, nodes=2)
        assert {one["node_id"] for one in claim["nodes"]} == {ready.node_id, other.node_id}
        assert (claim["node_id"], claim["gpu_uuids"], claim["endpoint"]) == (None, None, None)
        assert [one["claim_id"] for one in (await api.get("/v1/claims")).json()["claims"]] == [
            claim["claim_id"]
        ]


async def test_other_demands_of_the_same_job_are_refused_with_the_difference(
    api: httpx.AsyncClient, gpu_node: Node
) -> None:
    assert gpu_node.node_id
    await claimed(api, "job-1", **WHOLE)
    refused = await api.post("/v1/claims", json={"job_id": "job-1", **WHOLE, "gpu_name": "H100"})
    assert refusal(refused) == (409, "JOB_ID_IN_USE")
    assert "gpu_name is None, not H100" in problem(refused)["detail"].replace("'", "")


@pytest.mark.parametrize(
    ("demands", "path"),
    [
        ({"gpu_sharing": "memory"}, "$"),
        ({"gpu_sharing": "exclusive"}, "$"),
        ({"gpu_sharing": "time"}, "$.gpu_sharing"),
        ({"ttl_seconds": 9}, "$.ttl_seconds"),
        ({"wait_seconds": 301}, "$.wait_seconds"),
        ({"nodes": 0}, "$.nodes"),
        ({"priority": 101}, "$.priority"),
        ({"min_compute_capability": "eight"}, "$.min_compute_capability"),
    ],
)
async def test_demands_beyond_their_bounds_are_refused_by_name(
    api: httpx.AsyncClient, demands: Mapping[str, object], path: str
) -> None:
    refused = await api.post("/v1/claims", json={"job_id": "job-1", **demands})
    assert refusal(refused) == (422, "INVALID_REQUEST")
    assert problem(refused)["errors"][0]["path"].startswith(path)


# Which claim


async def test_a_superseded_claim_id_changes_nothing(api: httpx.AsyncClient, gpu_node: Node) -> None:
    assert gpu_node.node_id
    first = await claimed(api, "job-1", **WHOLE)
    named = {"claim_id": first["claim_id"]}
    assert (await api.delete("/v1/claims/job-1", params=named)).status_code == 204
    second = await claimed(api, "job-1", **WHOLE)
    assert second["claim_id"] != first["claim_id"]
    renewed = await api.post("/v1/claims/job-1/renew", json={**named, "ttl_seconds": 600})
    released = await api.delete("/v1/claims/job-1", params=named)
    assert refusal(renewed) == refusal(released) == (409, "CLAIM_SUPERSEDED")
    (current,) = (await api.get("/v1/claims")).json()["claims"]
    assert (current["claim_id"], current["ttl_seconds"]) == (second["claim_id"], second["ttl_seconds"])


async def test_a_renewal_may_change_the_ttl(api: httpx.AsyncClient, gpu_node: Node) -> None:
    assert gpu_node.node_id
    claim = await claimed(api, "job-1")
    body = {"claim_id": claim["claim_id"], "ttl_seconds": 600}
    renewed = (await api.post("/v1/claims/job-1/renew", json=body)).json()
    assert (renewed["claim_id"], renewed["ttl_seconds"]) == (claim["claim_id"], 600.0)
    assert 590 < renewed["expires_in_seconds"] <= 600
    await api.post("/v1/claims/job-1/renew", json={})
    shown = (await api.get("/v1/claims/job-1")).json()
    assert [one["text"] for one in shown["history"]] == [
        f"granted on {gpu_node.node_id}",
        f"renewed with a TTL of 600 s instead of {claim['ttl_seconds']:g} s",
    ]


async def test_renewals_together_have_a_result_each(api: httpx.AsyncClient, ready: Node) -> None:
    assert ready.node_id
    first, second = [await claimed(api, job_id) for job_id in ("job-1", "job-2")]
    names = [
        {"job_id": "job-1", "claim_id": first["claim_id"]},
        {"job_id": "job-2", "claim_id": first["claim_id"]},
        {"job_id": "job-3"},
        {"job_id": "job-2"},
    ]
    results = (await api.post("/v1/claims/renew", json={"claims": names})).json()["results"]
    assert [(one["job_id"], one["ok"], one["code"]) for one in results] == [
        ("job-1", True, None),
        ("job-2", False, "CLAIM_SUPERSEDED"),
        ("job-3", False, "CLAIM_NOT_FOUND"),
        ("job-2", True, None),
    ]
    assert results[0]["claim"]["expires_at"] >= first["expires_at"]
    assert results[3]["claim"]["claim_id"] == second["claim_id"]


async def test_more_than_a_thousand_renewals_together_are_refused(api: httpx.AsyncClient) -> None:
    names = [{"job_id": f"job-{number}"} for number in range(1001)]
    assert refusal(await api.post("/v1/claims/renew", json={"claims": names})) == (422, "INVALID_REQUEST")


# How a claim ended


async def test_a_released_claim_is_shown_for_a_while_and_listed_only_on_request(
    api: httpx.AsyncClient, gpu_node: Node
) -> None:
    assert gpu_node.node_id
    claim = await claimed(api, "job-1", **WHOLE)
    await api.delete("/v1/claims/job-1")
    shown = (await api.get("/v1/claims/job-1")).json()
    assert (shown["claim_id"], shown["state"]) == (claim["claim_id"], "released")
    assert shown["ended_at"] >= shown["granted_at"]
    notes = [(one["at"], one["text"]) for one in shown["history"]]
    assert notes == [
        (shown["granted_at"], f"granted on {gpu_node.node_id}"),
        (shown["ended_at"], "released"),
    ]
    assert (await api.get("/v1/claims")).json()["claims"] == []
    (listed,) = (await api.get("/v1/claims", params={"ended": "true"})).json()["claims"]
    assert (listed["claim_id"], listed["state"]) == (claim["claim_id"], "released")


async def test_a_lost_claim_is_held_until_it_is_released_by_its_id(
    service: RegistryService, api: httpx.AsyncClient, gpu_node: Node
) -> None:
    claim = await claimed(api, "job-1", **WHOLE)
    unregistration = {"type": "node_unregister", "node_id": gpu_node.node_id, "reason": "x", "drain": False}
    await gpu_node.send(unregistration)
    await until(lambda: not service.claims(), what="the claim lost")
    assert (await api.get("/v1/claims/job-1")).json()["state"] == "held"
    released = await api.delete("/v1/claims/job-1")
    renewed = await api.post("/v1/claims/job-1/renew", json={})
    assert refusal(released) == refusal(renewed) == (404, "CLAIM_NOT_FOUND")
    for refused in (released, renewed):
        assert f"--claim-id {claim['claim_id']}" in problem(refused)["detail"]
        assert f"?claim_id={claim['claim_id']}" in problem(refused)["detail"]
    named = {"claim_id": claim["claim_id"]}
    assert (await api.delete("/v1/claims/job-1", params=named)).status_code == 204
    assert (await api.get("/v1/claims/job-1")).json()["state"] == "lost"


async def test_a_job_that_never_had_a_claim_is_unknown(api: httpx.AsyncClient) -> None:
    assert refusal(await api.get("/v1/claims/job-1")) == (404, "CLAIM_NOT_FOUND")
    renewed = await api.post("/v1/claims/job-1/renew", json={"claim_id": "00"})
    released = await api.delete("/v1/claims/job-1", params={"claim_id": "00"})
    assert refusal(renewed) == refusal(released) == (404, "CLAIM_NOT_FOUND")


# Waiting


async def test_a_waiting_job_is_in_the_queue_and_gets_what_becomes_free(
    service: RegistryService, api: httpx.AsyncClient, gpu_node: Node
) -> None:
    await claimed(api, "job-1", **WHOLE)
    waiting = asyncio.ensure_future(claimed(api, "job-2", **WHOLE, wait_seconds=30, priority=7))
    await until(lambda: any(service.queue()), what="job-2 in the queue")
    (entry,) = (await api.get("/v1/queue")).json()["jobs"]
    assert (entry["job_id"], entry["position"], entry["priority"]) == ("job-2", 1, 7)
    assert (entry["open_requests"], entry["counts"]) == (1, {"capacity_exceeded": 1})
    assert entry["reason"] == "1 capacity_exceeded"
    for refused in (await api.get("/v1/claims/job-2"), await api.delete("/v1/claims/job-2")):
        assert refusal(refused) == (404, "CLAIM_NOT_FOUND")
        assert "it waits in the queue (place 1)" in problem(refused)["detail"]
    await api.delete("/v1/claims/job-1")
    claim = await asyncio.wait_for(waiting, 5)
    assert (claim["job_id"], claim["gpu_uuids"], claim["node_id"]) == ("job-2", [GPU], gpu_node.node_id)
    assert (await api.get("/v1/queue")).json() == {"jobs": [], "count": 0}


async def test_the_queue_says_what_excludes_the_nodes_now(
    service: RegistryService, api: httpx.AsyncClient, gpu_node: Node
) -> None:
    await claimed(api, "job-1", **WHOLE)
    waiting = asyncio.ensure_future(claimed(api, "job-2", **WHOLE, wait_seconds=30))
    await until(lambda: any(service.queue()), what="job-2 in the queue")
    await api.post(f"/v1/nodes/{gpu_node.node_id}/cordon", json={"reason": "repair"})
    (entry,) = (await api.get("/v1/queue")).json()["jobs"]
    assert (entry["reason"], entry["counts"]) == ("1 cordoned", {"cordoned": 1})
    waiting.cancel()


async def test_a_wait_that_ends_in_vain_is_refused_with_the_reasons(
    api: httpx.AsyncClient, gpu_node: Node
) -> None:
    assert gpu_node.node_id
    await claimed(api, "job-1", **WHOLE)
    refused = await api.post("/v1/claims", json={"job_id": "job-2", **WHOLE, "wait_seconds": 0.2})
    assert refusal(refused) == (409, "NO_AVAILABLE_NODE")
    assert problem(refused)["counts"] == {"capacity_exceeded": 1}


async def test_nothing_is_granted_to_a_client_that_disconnected_while_it_waited(
    service: RegistryService, api: httpx.AsyncClient, gpu_node: Node
) -> None:
    assert gpu_node.node_id
    await claimed(api, "job-1", **WHOLE)
    async with httpx.AsyncClient(base_url=api.base_url, trust_env=False) as leaving:
        job = {"job_id": "job-2", **WHOLE, "wait_seconds": 60}
        waiting = asyncio.ensure_future(leaving.post("/v1/claims", json=job))
        await until(lambda: any(service.queue()), what="job-2 in the queue")
        waiting.cancel()
        await asyncio.wait({waiting})
    await until(lambda: next(service.queue()).open_requests == 0, what="the request closed")
    await api.delete("/v1/claims/job-1")
    claim = await claimed(api, "job-3", **WHOLE)
    assert claim["gpu_uuids"] == [GPU]
    assert [one.job_id for one in service.claims()] == ["job-3"]
    assert [one.job_id for one in service.queue()] == ["job-2"], "it keeps its place for a while"


async def test_a_claim_on_shared_memory_is_named_at_its_gpu(api: httpx.AsyncClient, gpu_node: Node) -> None:
    await claimed(api, "job-1", gpu_sharing="memory", min_gpu_memory_mb=1000)
    (gpu,) = (await api.get(f"/v1/nodes/{gpu_node.node_id}")).json()["gpus"]
    assert (gpu["claimed_by"], gpu["shared_by"]) == (None, ["job-1"])


# Owners


@dataclass(frozen=True)
class Operators:
    """A registry with auth on, and a node that is ready."""

    service: RegistryService
    api: httpx.AsyncClient
    node_id: str

    async def token(self, role: Role, name: str) -> dict[str, str]:
        made = await self.service.tokens.create_operator(role, name=name)
        assert isinstance(made, NewToken)
        return bearer(made.token)


async def _operators() -> AsyncGenerator[Operators, None]:
    async with running(auth_on=True) as service, serving(service) as api:
        joining = await service.tokens.create_join()
        assert isinstance(joining, NewToken)
        async with node(service, token=joining.token) as one:
            await one.become_ready(hardware=ONE_GPU, capability_schema_version="1.1")
            yield Operators(service, api, one.node_id)


@pytest.fixture
async def operators() -> AsyncIterator[Operators]:
    async with aclosing(_operators()) as made:
        yield await anext(made)


async def test_a_claim_belongs_to_the_name_of_its_token_and_an_admin_may_release_it(
    operators: Operators,
) -> None:
    api, job = operators.api, {"job_id": "job-1", **WHOLE}
    ann = await operators.token(Role.OPERATE, "ann")
    again_ann = await operators.token(Role.OPERATE, "ann")
    bob = await operators.token(Role.OPERATE, "bob")
    chief = await operators.token(Role.ADMIN, "chief")
    claim = (await api.post("/v1/claims", json=job, headers=ann)).json()
    assert claim["owner"] == "ann"
    assert (await api.post("/v1/claims/job-1/renew", json={}, headers=again_ann)).status_code == 200
    named = {"claim_id": claim["claim_id"]}
    assert refusal(await api.post("/v1/claims", json=job, headers=bob)) == (409, "JOB_ID_IN_USE")
    renewed = await api.post("/v1/claims/job-1/renew", json=named, headers=bob)
    released = await api.delete("/v1/claims/job-1", params=named, headers=bob)
    assert refusal(renewed) == refusal(released) == (403, "NOT_CLAIM_OWNER")
    batch = await api.post("/v1/claims/renew", json={"claims": [{"job_id": "job-1"}]}, headers=bob)
    assert batch.json()["results"][0]["code"] == "NOT_CLAIM_OWNER"
    assert (await api.delete("/v1/claims/job-1", params=named, headers=chief)).status_code == 204


async def test_a_token_without_a_name_owns_its_claims_by_its_id(operators: Operators) -> None:
    made = await operators.service.tokens.create_operator(Role.OPERATE)
    assert isinstance(made, NewToken)
    claim = await operators.api.post("/v1/claims", json={"job_id": "j"}, headers=bearer(made.token))
    assert claim.json()["owner"] == made.token_id


async def test_a_reading_token_claims_renews_releases_and_cordons_nothing(operators: Operators) -> None:
    api, reader = operators.api, await operators.token(Role.READ, "eve")
    gpu = f"/v1/nodes/{operators.node_id}/gpus/{GPU}"
    for path in ("/v1/claims", "/v1/claims/renew", "/v1/claims/j/renew", f"{gpu}/cordon", f"{gpu}/uncordon"):
        assert refusal(await api.post(path, json={}, headers=reader)) == (403, "FORBIDDEN")
    assert refusal(await api.delete("/v1/claims/j", headers=reader)) == (403, "FORBIDDEN")
    for path in ("/v1/claims", "/v1/queue"):
        assert (await api.get(path, headers=reader)).status_code == 200


async def test_one_owner_fills_a_quarter_of_the_queue_and_no_more(operators: Operators) -> None:
    ann = await operators.token(Role.OPERATE, "ann")
    await operators.api.post("/v1/claims", json={"job_id": "job-1", **WHOLE}, headers=ann)
    limits = httpx.Limits(max_connections=None)
    base_url = operators.api.base_url
    async with httpx.AsyncClient(base_url=base_url, limits=limits, headers=ann, trust_env=False) as many:
        jobs = [{"job_id": f"w-{one}", **WHOLE, "wait_seconds": 60} for one in range(MOST_OF_ONE_OWNER)]
        waiting = [asyncio.ensure_future(many.post("/v1/claims", json=job)) for job in jobs]
        await until(
            lambda: len(list(operators.service.queue())) == MOST_OF_ONE_OWNER, what="all in the queue"
        )
        refused = await many.post("/v1/claims", json={"job_id": "x", **WHOLE, "wait_seconds": 60})
        assert refusal(refused) == (429, "QUEUE_FULL")
        for one in waiting:
            one.cancel()
        await asyncio.wait(waiting)


# One GPU


async def test_a_cordoned_gpu_is_claimed_by_nobody_until_it_is_uncordoned(operators: Operators) -> None:
    api, ann = operators.api, await operators.token(Role.OPERATE, "ann")
    path = f"/v1/nodes/{operators.node_id}/gpus/{GPU}"
    shown = (await api.post(f"{path}/cordon", json={"reason": "noisy fan"}, headers=ann)).json()
    assert shown["gpus"][0]["cordoned"] == "cordoned by ann: noisy fan"
    explained = (await api.get(f"/v1/nodes/{operators.node_id}/explain", headers=ann)).json()
    held = [one for one in explained["exclusions"] if "noisy fan" in one["have"] or one["have"] == "none"]
    assert [one["clears_when"] for one in held] == ["`registry node uncordon` with --gpu"] * 2
    job = {"job_id": "job-1", **WHOLE}
    refused = await api.post("/v1/claims", json=job, headers=ann)
    assert refusal(refused) == (409, "NO_AVAILABLE_NODE")
    (example,) = [one for some in problem(refused)["examples"].values() for one in some]
    assert "noisy fan" in example["have"]
    shown = (await api.post(f"{path}/uncordon", json={}, headers=ann)).json()
    assert shown["gpus"][0]["cordoned"] is None
    assert (await api.post("/v1/claims", json=job, headers=ann)).status_code == 200


async def test_a_gpu_or_a_node_that_does_not_exist_cannot_be_cordoned(
    api: httpx.AsyncClient, ready: Node
) -> None:
    path = f"/v1/nodes/{ready.node_id}/gpus"
    assert refusal(await api.post(f"{path}/GPU-x/cordon", json={})) == (404, "UNKNOWN_GPU")
    assert refusal(await api.post(f"{path}/%230/cordon", json={})) == (404, "UNKNOWN_GPU")
    assert refusal(await api.post("/v1/nodes/x/gpus/y/cordon", json={})) == (404, "UNKNOWN_NODE")


# What an answer explains


@pytest.mark.parametrize(
    ("wrong", "near"),
    [
        ("gpus_count", "gpu_count"),
        ("gpus", "gpu_count"),
        ("model", "required_models"),
        ("node", "allowed_nodes"),
        ("colour", None),
        ("label", "labels"),
        ("min_gpu_memory", "min_gpu_memory_mb"),
    ],
)
async def test_an_unknown_field_is_refused_with_the_nearest_known_one(
    api: httpx.AsyncClient, wrong: str, near: str | None
) -> None:
    for path in ("/v1/claims", "/v1/dispatch/explain"):
        (error,) = problem(await api.post(path, json={"job_id": "j", wrong: 1}))["errors"]
        assert error["path"] == f"$.{wrong}"
        assert ("did you mean" in error["problem"]) == (near is not None)
        assert near is None or f"did you mean `{near}`?" in error["problem"]


async def test_an_unknown_field_inside_a_list_is_named_by_its_path_with_the_nearest_known_one(
    api: httpx.AsyncClient,
) -> None:
    claims = [{"job_id": "a"}, {"job_id": "j", "claim_idd": "x"}]
    (error,) = problem(await api.post("/v1/claims/renew", json={"claims": claims}))["errors"]
    assert error == {
        "path": "$.claims.1.claim_idd",
        "problem": "there is no such field; did you mean `claim_id`?",
    }


@pytest.mark.parametrize("path", ["/v1/claims", "/v1/dispatch/explain"])
async def test_the_path_of_a_wrong_label_names_the_label_alone(path: str, api: httpx.AsyncClient) -> None:
    refused = problem(await api.post(path, json={"job_id": "j", "labels": {"zone": 1}}))
    assert {error["path"] for error in refused["errors"]} == {"$.labels.zone"}


async def test_an_unknown_word_in_a_query_is_refused_with_the_nearest_known_one(
    api: httpx.AsyncClient,
) -> None:
    (error,) = problem(await api.get("/v1/claims?node=x"))["errors"]
    assert "did you mean `node_id`?" in error["problem"]
    (error,) = problem(await api.get("/v1/nodes?labels=x"))["errors"]
    assert "did you mean `label`?" in error["problem"]


@pytest.mark.parametrize(
    "path", ["/v1/nodes", "/v1/nodes/{id}", "/v1/claims", "/v1/claims/job-1", "/v1/queue"]
)
async def test_a_list_names_the_event_after_which_a_follower_goes_on(
    service: RegistryService, api: httpx.AsyncClient, ready: Node, path: str
) -> None:
    await claimed(api, "job-1")
    answer = await api.get(path.format(id=ready.node_id))
    assert int(answer.headers["X-Event-Id"]) == service.event_log.last_id
    await api.delete("/v1/claims/job-1")
    text = (await api.get(f"/v1/events?follow=false&after={answer.headers['X-Event-Id']}")).text
    assert "event: claim_released" in text
    assert "event: job_assigned" not in text
