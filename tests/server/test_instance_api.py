"""The operators' API of an instance while registries come and go: what leaves, and what may not leave."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator

import httpx
import pytest

from gpu_agent.registry.tokens import Role
from gpu_agent.server.service import RegistryService
from tests.server.api_harness import bearer, operator_token, problem
from tests.server.disks import FailingStore
from tests.server.harness import Node, placed, running, until
from tests.server.instances import InstanceUnderTest, client, instance
from tests.server.sse import following
from tests.waiting import patience


@pytest.fixture
async def leader() -> AsyncIterator[InstanceUnderTest]:
    async with instance() as leader:
        yield leader


@pytest.fixture
async def at_leader(leader: InstanceUnderTest) -> AsyncIterator[httpx.AsyncClient]:
    async with client(leader) as api:
        yield api


def once_then_never() -> Callable[[], bool]:
    """A lease that ends between two looks at it."""
    looks: Iterator[bool] = iter([True])
    return lambda: next(looks, False)


REQUESTS = [
    ("POST", "/v1/claims", {"job_id": "a"}),
    ("POST", "/v1/claims/a/renew", {}),
    ("DELETE", "/v1/claims/a", None),
    ("POST", "/v1/dispatch/select", {}),
    ("GET", "/v1/nodes", None),
    ("GET", "/v1/queue", None),
    ("GET", "/v1/endpoints", None),
    ("GET", "/openapi.json", None),
]


@pytest.mark.parametrize(("method", "path", "body"), REQUESTS)
async def test_no_answer_leaves_once_the_lease_has_ended(
    method: str,
    path: str,
    body: object,
    leader: InstanceUnderTest,
    *,
    service: RegistryService,
    at_leader: httpx.AsyncClient,
) -> None:
    for may_answer in (lambda: False, once_then_never()):
        leader.server.attach(service, may_answer=may_answer)
        refused = await at_leader.request(method, path, json=body)
        assert (refused.status_code, problem(refused)["code"]) == (503, "REGISTRY_BUSY")
        assert refused.headers["retry-after"] == "1"
        assert "does not lead any more" in refused.json()["detail"]


@pytest.mark.parametrize(("method", "path"), [("GET", "/v1/none"), ("PATCH", "/v1/nodes")])
async def test_no_refusal_leaves_once_the_lease_has_ended(
    method: str,
    path: str,
    leader: InstanceUnderTest,
    service: RegistryService,
    *,
    at_leader: httpx.AsyncClient,
) -> None:
    leader.lead(service)
    leader.lease_valid = False
    assert (await at_leader.request(method, path)).status_code == 503


async def test_without_its_lease_an_instance_decides_nothing(
    leader: InstanceUnderTest, service: RegistryService, at_leader: httpx.AsyncClient, *, ready: Node
) -> None:
    leader.lead(service)
    leader.lease_valid = False
    for path, body in (
        ("/v1/claims", {"job_id": "a"}),
        (f"/v1/nodes/{ready.node_id}/cordon", {"reason": "r"}),
    ):
        assert (await at_leader.post(path, json=body)).status_code == 503
    assert not service.claims()
    node = service.node(ready.node_id)
    assert node is not None
    assert node.cordoned is None


async def test_an_event_that_may_be_stale_is_not_sent(
    leader: InstanceUnderTest, service: RegistryService, at_leader: httpx.AsyncClient, *, ready: Node
) -> None:
    leader.lead(service)
    async with following(at_leader) as stream:
        leader.lease_valid = False
        await service.cordon(ready.node_id, reason="r")
        with pytest.raises(httpx.RemoteProtocolError):
            await stream.end()
        assert not stream.parser.unread


async def test_losing_the_lead_ends_streams_at_once_and_refuses_what_is_under_way(
    leader: InstanceUnderTest, service: RegistryService, at_leader: httpx.AsyncClient, *, ready: Node
) -> None:
    leader.lead(service)
    await service.drain(ready.node_id)
    waiting = asyncio.ensure_future(
        at_leader.post("/v1/claims", json={"job_id": "a", "wait_seconds": 60}, timeout=60)
    )
    async with following(at_leader) as stream:
        await until(lambda: service.queue_place("a"), what="a job in the queue")
        leader.server.detach()
        await stream.end()
        await service.stop()
        refused = await asyncio.wait_for(waiting, patience(5))
        assert (refused.status_code, problem(refused)["code"]) == (503, "REGISTRY_BUSY")


async def test_a_request_of_one_term_is_not_answered_by_the_registry_of_the_next(
    leader: InstanceUnderTest, service: RegistryService, at_leader: httpx.AsyncClient, *, ready: Node
) -> None:
    read = asyncio.Event()
    rest = asyncio.Event()

    async def slowly() -> AsyncIterator[bytes]:
        yield b'{"job_id": '
        read.set()
        await rest.wait()
        yield b'"a"}'

    leader.lead(service)
    headers = {"Content-Type": "application/json"}
    claiming = asyncio.ensure_future(at_leader.post("/v1/claims", content=slowly(), headers=headers))
    await read.wait()
    await at_leader.get("/v1/claims")  # behind the first part
    leader.server.detach()
    leader.lead(service)
    rest.set()
    assert (await claiming).status_code == 503
    assert not service.claims()
    assert (await at_leader.post("/v1/claims", json={"job_id": "b"})).status_code == 200
    assert ready.node_id


async def test_an_instance_that_leads_again_answers_from_its_new_registry(
    leader: InstanceUnderTest, service: RegistryService, at_leader: httpx.AsyncClient, *, ready: Node
) -> None:
    leader.lead(service)
    await placed(service, "a")
    assert (await at_leader.get("/v1/claims/a")).status_code == 200
    leader.server.detach()
    assert problem(await at_leader.get("/v1/claims/a"))["code"] == "REGISTRY_BUSY"
    async with running() as other:
        leader.lead(other)
        assert (await at_leader.get("/v1/claims/a")).status_code == 404
        async with following(at_leader):
            text = (await at_leader.get("/metrics")).text
    counted = (
        'gpu_registry_http_request_seconds_count{method="GET",route="/v1/claims/{job_id}",status="%d"} 1.0'
    )
    assert all(counted % status in text for status in (200, 404))
    assert ready.node_id


async def test_an_instance_answers_for_its_health_itself(
    leader: InstanceUnderTest, service: RegistryService, ready: Node
) -> None:
    leader.lead(service)
    async with instance(leader=leader.api) as standby, client(standby) as api:
        health = (await api.get("/healthz")).json()
        assert (health["nodes"], health["connections"]) == (3, 2)
        assert (await api.get("/readyz")).json()["checks"][0]["name"] == "leader"
        standby.problem = "its link to the leader is down"
        unready = await api.get("/readyz")
        assert (unready.status_code, problem(unready)["code"]) == (503, "NOT_READY")
        assert "its link to the leader is down" in unready.json()["detail"]
        text = (await api.get("/metrics")).text
        assert "gpu_registry_leads 0" in text
        assert "gpu_registry_nodes{" not in text
        assert "gpu_registry_http_request_seconds" in text
    assert ready.node_id


async def test_a_token_that_a_copy_which_is_behind_does_not_know_may_yet_be_one() -> None:
    """A client takes a 401 for final."""
    async with running(auth_on=True) as copy, instance(copy=copy) as standby, client(standby) as api:
        unknown = bearer("gpuo_00000000_unknown")
        for standby.copy_is_current, status in ((False, 503), (True, 401)):
            for path in ("/v1/events", "/v1/members", "/metrics"):
                assert (await api.get(path, headers=unknown)).status_code == status


async def test_an_instance_without_a_link_lists_the_members_of_its_own_copy() -> None:
    async with running(auth_on=True) as copy, instance(copy=copy) as standby, client(standby) as api:
        reader = bearer(await operator_token(copy, Role.READ))
        assert (await api.get("/v1/members")).status_code == 401
        answer = await api.get("/v1/members", headers=reader)
        assert answer.status_code == 200
        found = [(one["name"], one["role"], one["nodes"]) for one in answer.json()["members"]]
        assert found == [("standby", "standby", 2)]
        assert (await api.get("/v1/nodes", headers=reader)).status_code == 503


async def test_a_leader_answers_for_its_health_while_its_lease_is_in_doubt(
    leader: InstanceUnderTest, service: RegistryService, at_leader: httpx.AsyncClient
) -> None:
    leader.lead(service)
    leader.lease_valid = False
    checks = (await at_leader.get("/readyz")).json()["checks"]
    assert [one["name"] for one in checks] == ["leader"]
    assert (await at_leader.get("/healthz")).json()["nodes"] == 0
    text = (await at_leader.get("/metrics")).text
    assert "gpu_registry_leads 1" in text
    assert "gpu_registry_nodes{" in text


async def test_a_leader_that_cannot_store_stays_ready_so_that_a_load_balancer_leaves_its_nodes(
    leader: InstanceUnderTest, at_leader: httpx.AsyncClient
) -> None:
    store = FailingStore()
    async with running(store=store) as failing:
        leader.lead(failing)
        store.full = True
        assert (await at_leader.post("/v1/tokens", json={"kind": "join"})).status_code == 503
        assert failing.store_problem is not None
        assert (await at_leader.get("/readyz")).status_code == 200
        assert (await at_leader.head("/readyz")).status_code == 200
        store.full = False


async def test_a_standby_judges_who_reads_its_metrics_by_its_copy() -> None:
    async with running(auth_on=True) as copy, instance(copy=copy) as standby, client(standby) as api:
        reader = bearer(await operator_token(copy, Role.READ))
        assert (await api.get("/metrics")).status_code == 401
        assert (await api.get("/metrics", headers=bearer("gpuo_00000000_guess"))).status_code == 401
        assert (await api.get("/metrics", headers=reader)).status_code == 200
        assert (await api.get("/readyz")).status_code == 200
