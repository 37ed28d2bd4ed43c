"""Nodes over HTTP, on a real registry with nodes on real sockets."""

from contextlib import AsyncExitStack

import httpx
import pytest

from gpu_agent.registry.tokens import Role
from gpu_agent.server.service import RegistryService
from gpu_agent.wire.api import NewToken
from tests.server.api_harness import problem, serving
from tests.server.harness import Node, node, running, until

H100 = {"cpu_cores": 8, "memory_gb": 32, "gpus": [{"name": "NVIDIA H100", "memory_gb": 80}]}


async def test_an_empty_registry_lists_no_nodes(api: httpx.AsyncClient) -> None:
    answer = (await api.get("/v1/nodes")).json()
    assert answer == {"auth": "off", "plaintext": False, "nodes": [], "count": 0, "next": None}


async def test_the_list_says_that_auth_is_on() -> None:
    async with running(auth_on=True) as service, serving(service) as client:
        made = await service.tokens.create_operator(Role.READ)
        assert isinstance(made, NewToken)
        answer = await client.get("/v1/nodes", headers={"Authorization": f"Bearer {made.token}"})
    assert answer.json()["auth"] == "on"


async def test_the_list_shows_what_an_operator_looks_for(api: httpx.AsyncClient, ready: Node) -> None:
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
        "last_heartbeat_age_seconds",
        "simulated",
        "labels",
    } <= set(listed)
    assert (listed["node_id"], listed["status"], listed["connected"]) == (ready.node_id, "ready", True)
    assert [gpu["name"] for gpu in listed["gpus"]] == ["NVIDIA L4"]
    assert listed["installed_models"][0]["model_id"] == "m"


async def test_words_that_this_version_does_not_know_are_shown_as_the_node_sent_them(
    service: RegistryService, api: httpx.AsyncClient
) -> None:
    gpus = [
        {"name": "NVIDIA L4", "uuid": f"GPU-{health}", "memory_gb": 24, "health": health}
        for health in ("melting", "ok")
    ]
    model = {"model_id": "m", "version": "1", "enabled": True, "status": "thawing"}
    async with node(service) as newer:
        await newer.register(
            capability_schema_version="1.1",
            hardware={"cpu_cores": 8, "memory_gb": 32, "gpus": gpus},
            installed_models=[model],
            platform="plan9",
        )
        shown = (await api.get(f"/v1/nodes/{newer.node_id}")).json()
        explained = (await api.get(f"/v1/nodes/{newer.node_id}/explain?model=m")).json()
    assert (shown["gpus"][0]["health"], shown["gpus"][0]["usable"]) == ("melting", False)
    assert (shown["installed_models"][0]["status"], shown["platform"]) == ("thawing", "plan9")
    assert explained["model"]["state"] == "thawing"


async def test_many_nodes_are_one_list(service: RegistryService, api: httpx.AsyncClient) -> None:
    async with AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(node(service)) for _ in range(120)]
        ids = {(await one.register())["node_id"] for one in nodes}
        answer = (await api.get("/v1/nodes")).json()
    assert [one["node_id"] for one in answer["nodes"]] == sorted(ids)
    assert (answer["count"], answer["next"]) == (120, None)


async def test_pages_hold_every_node_once(service: RegistryService, api: httpx.AsyncClient) -> None:
    async with AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(node(service)) for _ in range(5)]
        ids = {(await one.register())["node_id"] for one in nodes}
        pages = [(await api.get("/v1/nodes?limit=2")).json()]
        for _ in range(2):
            pages.append((await api.get(f"/v1/nodes?limit=2&after={pages[-1]['next']}")).json())
    assert [page["count"] for page in pages] == [2, 2, 1]
    assert [one["node_id"] for page in pages for one in page["nodes"]] == sorted(ids)
    assert pages[-1]["next"] is None


async def test_a_list_holds_the_nodes_that_match_every_condition(
    service: RegistryService, api: httpx.AsyncClient, ready: Node
) -> None:
    async with node(service) as other:
        await other.register(hardware=H100, labels={"zone": "b", "rack": "x=1"})
        for asked, expected in {
            "status=ready": ready,
            "status=registering": other,
            "label=zone%3Da": ready,
            "label=zone%3Db&label=rack%3Dx%3D1": other,
            "gpu_name=h100": other,
            "gpu_name=l4&model=m": ready,
        }.items():
            listed = (await api.get(f"/v1/nodes?{asked}")).json()["nodes"]
            assert [one["node_id"] for one in listed] == [expected.node_id], asked
        for asked, count in {
            "status=ready&status=registering": 2,
            "connected=true": 2,
            "connected=false": 0,
            "label=zone%3Da&gpu_name=h100": 0,
            "model=not/installed": 0,
        }.items():
            for one in (ready, other):
                await one.heartbeat()  # else a slow machine finds them silent
            await until(lambda: all_connected(service), what="their heartbeats")
            assert (await api.get(f"/v1/nodes?{asked}")).json()["count"] == count, asked


def all_connected(service: RegistryService) -> bool:
    return all(one.connected for one in service.nodes())


@pytest.mark.parametrize("asked", ["statuss=ready", "status=alive", "label=zone", "connected=yes", "limit=0"])
async def test_an_unknown_condition_is_refused_not_ignored(api: httpx.AsyncClient, asked: str) -> None:
    refused = problem(await api.get(f"/v1/nodes?{asked}"))
    assert refused["code"] == "INVALID_REQUEST"
    assert refused["errors"][0]["path"].startswith(f"$.{asked.split('=', maxsplit=1)[0]}")


async def test_a_node_is_shown_with_its_checks_history_labels_and_features(
    api: httpx.AsyncClient, ready: Node
) -> None:
    shown = (await api.get(f"/v1/nodes/{ready.node_id}")).json()
    assert shown["status"] == "ready"
    assert shown["labels"] == {"zone": "a"}
    assert {"checks", "clears_when", "events", "labels", "features", "probe_age_seconds"} <= set(shown)
    assert "node_registered" in [event["event"] for event in shown["events"]]


async def test_a_nodes_history_is_shown_from_its_end(api: httpx.AsyncClient, ready: Node) -> None:
    path = f"/v1/nodes/{ready.node_id}/events"
    answer = (await api.get(path)).json()
    assert answer["node_id"] == ready.node_id
    assert len(answer["events"]) > 1
    assert (await api.get(f"{path}?limit=1")).json()["events"] == answer["events"][-1:]


async def test_an_unknown_node_is_404_with_the_next_step(api: httpx.AsyncClient) -> None:
    for path in ("/v1/nodes/node-x", "/v1/nodes/node-x/events"):
        response = await api.get(path)
        assert response.status_code == 404
        assert problem(response)["code"] == "UNKNOWN_NODE"
        assert "registry node list" in problem(response)["detail"]


async def test_s05_a_drain_answers_with_the_node_and_its_new_status(
    api: httpx.AsyncClient, ready: Node
) -> None:
    await api.post("/v1/claims", json={"job_id": "job-1"})
    answer = await api.post(f"/v1/nodes/{ready.node_id}/drain", json={"deadline_seconds": 60, "reason": "r"})
    assert answer.json()["status"] == "draining"
    assert answer.json()["drain"]["reason"] == "r"
    await api.delete("/v1/claims/job-1")
    assert (await api.get(f"/v1/nodes/{ready.node_id}")).json()["status"] == "offline"


async def test_a_drained_node_is_resumed(api: httpx.AsyncClient, ready: Node) -> None:
    path = f"/v1/nodes/{ready.node_id}"
    assert (await api.post(f"{path}/drain", json={})).json()["status"] == "offline"
    resumed = (await api.post(f"{path}/resume", json={})).json()
    assert (resumed["status"], resumed["reason_code"]) == ("registering", "resumed")


async def test_a_cordoned_node_gets_no_jobs_until_it_is_uncordoned(
    api: httpx.AsyncClient, ready: Node
) -> None:
    path = f"/v1/nodes/{ready.node_id}"
    cordoned = (await api.post(f"{path}/cordon", json={"reason": "new driver"})).json()
    assert (cordoned["status"], cordoned["cordoned"]) == ("ready", "new driver")
    assert problem(await api.post("/v1/claims", json={"job_id": "j"}))["counts"] == {"cordoned": 1}
    assert (await api.post(f"{path}/uncordon", json={})).json()["cordoned"] is None
    assert (await api.post("/v1/claims", json={"job_id": "j"})).status_code == 200


@pytest.mark.parametrize("command", ["refresh", "reregister", "check"])
async def test_a_connected_node_receives_the_command(
    service: RegistryService, api: httpx.AsyncClient, ready: Node, command: str
) -> None:
    answer = await api.post(f"/v1/nodes/{ready.node_id}/{command}", json={})
    assert answer.json()["node_id"] == ready.node_id
    assert (await ready.receive_type("node_control"))["command"] == command
    await ready.socket.close()
    await until(lambda: service.size.connections == 0, what="no connection left")
    refused = await api.post(f"/v1/nodes/{ready.node_id}/{command}", json={})
    assert (refused.status_code, problem(refused)["code"]) == (409, "NODE_NOT_CONNECTED")


async def test_a_removed_node_is_disconnected(api: httpx.AsyncClient, ready: Node) -> None:
    path = f"/v1/nodes/{ready.node_id}"
    assert (await api.delete(path)).status_code == 204
    assert problem(await api.get(path))["code"] == "UNKNOWN_NODE"
    assert (await ready.closed())[0] == 1001


@pytest.mark.parametrize(
    "command", ["drain", "resume", "cordon", "uncordon", "refresh", "reregister", "check"]
)
async def test_a_command_for_an_unknown_node_is_404(api: httpx.AsyncClient, command: str) -> None:
    assert problem(await api.post(f"/v1/nodes/node-x/{command}", json={}))["code"] == "UNKNOWN_NODE"


async def test_an_unknown_node_cannot_be_removed(api: httpx.AsyncClient) -> None:
    assert problem(await api.delete("/v1/nodes/node-x"))["status"] == 404


async def test_an_empty_request_may_come_without_a_body(api: httpx.AsyncClient, ready: Node) -> None:
    headers = {"Content-Type": "application/json"}
    answer = await api.post(f"/v1/nodes/{ready.node_id}/uncordon", headers=headers)
    assert answer.status_code == 200
    assert problem(await api.post(f"/v1/nodes/{ready.node_id}/uncordon", json={"a": 1}))["status"] == 422
