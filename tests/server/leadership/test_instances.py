"""Instances of one registry on a real etcd: who leads, and that no node moves when that changes."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, closing

import pytest
from websockets.asyncio.client import connect

from gpu_agent.registry.job import Job
from gpu_agent.registry.settings import Thresholds
from gpu_agent.runtime.tasks import Tasks
from gpu_agent.server.address import Address
from gpu_agent.server.gateway import gateway
from gpu_agent.server.gateway.instance_links import LINK_VERSION, Instance
from gpu_agent.server.gateway.link import Kind, Link
from gpu_agent.server.leadership import leader_link
from gpu_agent.server.leadership.instance import InstanceSettings, RegistryInstance
from gpu_agent.server.limits import Limits
from gpu_agent.server.service import RegistryService, ServiceSettings
from gpu_agent.store.etcd.client import Delete, EtcdClient
from gpu_agent.wire.api import ClaimView
from tests.server.harness import LOOPBACK, Node, known, until
from tests.store.etcd_cluster import Cluster, cluster, free_ports

THRESHOLDS = Thresholds(
    heartbeat_interval_seconds=0.5,
    warmup_heartbeat_interval_seconds=0.05,
    heartbeat_timeout_seconds=20.0,
    scan_interval_seconds=0.05,
)


@pytest.fixture(scope="module")
def etcd() -> Iterator[Cluster]:
    with cluster(1) as running:
        yield running


class Running:
    """One instance, in this process."""

    def __init__(self, instance: RegistryInstance, name: str) -> None:
        self.instance, self.name = instance, name
        self.address = LOOPBACK
        self.may_answer: Callable[[], bool] = lambda: False

    @property
    def leads(self) -> bool:
        return self.instance.service is not None

    @property
    def service(self) -> RegistryService:
        assert self.instance.service is not None
        return self.instance.service

    @property
    def is_linked(self) -> bool:
        return all(one.ok for one in self.instance.readiness())


@asynccontextmanager
async def running(
    etcd: Cluster, prefix: str, name: str, *, thresholds: Thresholds = THRESHOLDS
) -> AsyncIterator[Running]:
    own = Instance(
        name=name, since=time.time(), link=Address("127.0.0.1", free_ports(1)[0]), api=f"http://{name}"
    )
    settings = InstanceSettings(
        own=own, access=etcd.access, prefix=prefix, link_server_tls=None, link_client_tls=None
    )
    service_settings = ServiceSettings(
        node_listen=LOOPBACK,
        thresholds=thresholds,
        limits=Limits(close_timeout_seconds=0.3),
        auth_on=False,
    )
    held: list[Running] = []

    async def began(_service: RegistryService, may_answer: Callable[[], bool]) -> None:
        held[0].may_answer = may_answer

    one = Running(RegistryInstance(settings, service_settings, began=began, ended=lambda: None), name)
    held.append(one)
    one.address = await one.instance.start()
    async with Tasks() as tasks:
        for task, work in one.instance.tasks().items():
            tasks.start(f"{name}-{task}", work)
        try:
            yield one
        finally:
            await one.instance.stop()
            tasks.end()


@asynccontextmanager
async def node_at(address: Address) -> AsyncIterator[Node]:
    async with connect(f"ws://{address}/ws/node", proxy=None, compression=None, close_timeout=1) as socket:
        yield Node(socket)


@asynccontextmanager
async def three(etcd: Cluster, prefix: str) -> AsyncIterator[list[Running]]:
    async with AsyncExitStack() as stack:
        found = [await stack.enter_async_context(running(etcd, prefix, name)) for name in "abc"]
        await until(lambda: all(one.is_linked for one in found), what="links of all to a leader")
        yield found


@pytest.fixture
def prefix(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tmp_path_factory.mktemp("prefix").name


async def test_one_leads_and_nodes_register_at_each(etcd: Cluster, prefix: str) -> None:
    async with three(etcd, prefix) as instances, AsyncExitStack() as stack:
        assert [one.leads for one in instances].count(True) == 1
        nodes = [await stack.enter_async_context(node_at(one.address)) for one in instances]
        for one in nodes:
            await one.become_ready()
        leader = next(one for one in instances if one.leads)
        assert leader.service.size.nodes == 3
        members = leader.service.members()
        assert [(one.role, one.nodes) for one in members] == [("leader", 1), ("standby", 1), ("standby", 1)]
        assert members[0].term == 1


async def leader_among(instances: list[Running]) -> Running:
    found = await until(lambda: [one for one in instances if one.leads], what="a leader")
    return found[0]


def depose(etcd: Cluster, prefix: str) -> None:
    """Take the leader's key away, as etcd does when its lease has ended."""
    with closing(EtcdClient(etcd.access)) as client:
        client.transact([], [Delete(f"{prefix}/leader".encode())])


async def test_a_takeover_moves_no_node_and_nothing_is_lost(etcd: Cluster, prefix: str) -> None:
    async with three(etcd, prefix) as instances, AsyncExitStack() as stack:
        first = await leader_among(instances)
        nodes = [await stack.enter_async_context(node_at(one.address)) for one in instances]
        for one in nodes:
            await one.become_ready()
        epochs = [known(first.service, one.node_id).session_epoch for one in nodes]
        placed = await first.service.claim(Job(job_id="job-1"))
        assert isinstance(placed, ClaimView)

        depose(etcd, prefix)
        await until(lambda: not first.leads, what="the end of the first term")
        leader = await leader_among(instances)

        def connected() -> bool:
            return all(known(leader.service, one.node_id).connected for one in nodes)

        await until(connected, what="the sessions of all nodes")
        assert [known(leader.service, one.node_id).session_epoch for one in nodes] == epochs
        found = leader.service.claim_of("job-1")
        assert found is not None
        assert (found.claim_id, found.state) == (placed.claim_id, "active")
        assert leader.service.members()[0].term == 2
        for number in range(2, 4):
            for one in nodes:
                await one.heartbeat()
            await until_placed(leader, f"job-{number}")


async def until_placed(leader: Running, job_id: str) -> ClaimView:
    placed = await leader.service.claim(Job(job_id=job_id, wait_seconds=20.0))
    assert isinstance(placed, ClaimView)
    return placed


class Stranger:
    """A program of this machine that speaks as an instance does."""

    def __init__(self) -> None:
        self.received: list[Kind] = []
        self.ended: list[str] = []
        self.link = Link(lambda kind, _number, _payload: self.received.append(kind), self.ended.append)

    async def connect(self, leader: Running) -> None:
        at = leader.instance.own.link
        await asyncio.get_running_loop().create_connection(lambda: self.link, at.host, at.port)


async def test_who_does_not_have_the_instances_secret_is_none(etcd: Cluster, prefix: str) -> None:
    async with running(etcd, prefix, "a") as leader:
        await until(lambda: leader.is_linked, what="its link to itself")
        for frame in ({"proof": "0" * 64}, {"name": "z"}):
            stranger = Stranger()
            await stranger.connect(leader)
            hello = {"name": "z", "version": LINK_VERSION, "nonce": "1"}
            stranger.link.send_document(Kind.HELLO, 0, hello)
            await until(lambda: stranger.received, what="a challenge")  # noqa: B023 - run at once
            stranger.link.send_document(Kind.PROOF, 0, frame)
            await until(lambda: stranger.ended, what="the end of its link")  # noqa: B023 - as above
            assert stranger.received == [Kind.CHALLENGE]
        assert [one.name for one in leader.service.members()] == ["a"]
        assert leader.is_linked


async def test_a_leader_that_does_not_have_the_secret_gets_no_node(
    etcd: Cluster, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(etcd, prefix, "a") as leader:
        await until(lambda: leader.is_linked, what="its link to itself")
        monkeypatch.setattr(leader_link, "proof", lambda *_: "expected")
        async with running(etcd, prefix, "b") as other:
            await asyncio.sleep(0.5)  # it tries again and again
            assert not other.is_linked
            monkeypatch.undo()
            await until(lambda: other.is_linked, what="a link once the leader proves itself")


async def test_many_sessions_are_reported_in_slices_and_what_comes_meanwhile_waits(
    etcd: Cluster, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway, "REPORTED_AT_ONCE", 1)
    async with three(etcd, prefix) as instances, AsyncExitStack() as stack:
        first = await leader_among(instances)
        nodes = [await stack.enter_async_context(node_at(instances[0].address)) for _ in range(8)]
        for one in nodes:
            await one.become_ready()
        depose(etcd, prefix)
        await until(lambda: not first.leads, what="the end of the first term")
        for one in nodes:
            await one.heartbeat(running_jobs=["job-1"])
        leader = await leader_among(instances)

        def jobs() -> int:
            return sum(known(leader.service, one.node_id).running_jobs == ("job-1",) for one in nodes)

        await until(lambda: jobs() == len(nodes), what="what all nodes said meanwhile")
        assert leader.service.health.events.refusals.total() == 0
