"""Instances of one registry in this process, on a real etcd."""

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, closing

from websockets.asyncio.client import connect

from gpu_agent.registry.settings import Thresholds
from gpu_agent.runtime.address import Address
from gpu_agent.runtime.tasks import Tasks
from gpu_agent.runtime.tls.contexts import client_context, server_context
from gpu_agent.server.gateway.instance_links import Instance
from gpu_agent.server.leadership.instance import InstanceSettings, RegistryInstance
from gpu_agent.server.limits import Limits
from gpu_agent.server.service import RegistryService, ServiceSettings
from gpu_agent.store.etcd.client import (
    Access,
    EtcdClient,
)
from tests.authority import Authority
from tests.server.harness import LOOPBACK, Node, until
from tests.store.etcd_cluster import Cluster, free_ports

THRESHOLDS = Thresholds(
    heartbeat_interval_seconds=0.5,
    warmup_heartbeat_interval_seconds=0.05,
    heartbeat_timeout_seconds=20.0,
    scan_interval_seconds=0.05,
)


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
        return self.instance.is_linked


Contexts = tuple[ssl.SSLContext, ssl.SSLContext]
"""Of the two ends of an instance's links."""


def contexts(authority: Authority, *names: str) -> Contexts:
    own = authority.issue(*names)
    return server_context(own, client_ca_file=authority.file), client_context(ca_file=authority.file, own=own)


@asynccontextmanager
async def running(
    access: Access,
    prefix: str,
    name: str,
    *,
    thresholds: Thresholds = THRESHOLDS,
    links: Contexts | tuple[None, None] = (None, None),
    auth_on: bool = False,
) -> AsyncIterator[Running]:
    api = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0)
    host, port = api.sockets[0].getsockname()[:2]
    link = Address("127.0.0.1", free_ports(1)[0])
    own = Instance(name=name, since=time.time(), link=link, api=f"http://{host}:{port}", auth_on=auth_on)
    settings = InstanceSettings(
        own=own, access=access, prefix=prefix, link_server_tls=links[0], link_client_tls=links[1]
    )
    service_settings = ServiceSettings(
        node_listen=LOOPBACK,
        thresholds=thresholds,
        limits=Limits(close_timeout_seconds=0.3),
        auth_on=auth_on,
    )
    held: list[Running] = []

    async def began(_service: RegistryService, may_answer: Callable[[], bool]) -> None:
        held[0].may_answer = may_answer

    one = Running(RegistryInstance(settings, service_settings, began=began, ended=lambda: None), name)
    held.append(one)
    try:
        one.address = await one.instance.start()
        async with Tasks() as tasks:
            for task, work in one.instance.tasks().items():
                tasks.start(f"{name}-{task}", work)
            try:
                yield one
            finally:
                await one.instance.stop()
                tasks.end()
    finally:
        api.close()


@asynccontextmanager
async def node_at(address: Address) -> AsyncIterator[Node]:
    async with connect(f"ws://{address}/ws/node", proxy=None, compression=None, close_timeout=1) as socket:
        yield Node(socket)


@asynccontextmanager
async def three(
    etcd: Cluster, prefix: str, *, links: Contexts | tuple[None, None] = (None, None)
) -> AsyncIterator[list[Running]]:
    async with AsyncExitStack() as stack:
        found = [
            await stack.enter_async_context(running(etcd.access, prefix, name, links=links)) for name in "abc"
        ]
        await until(lambda: all(one.is_linked for one in found), what="links of all to a leader")
        yield found


async def leader_among(instances: list[Running]) -> Running:
    found = await until(lambda: [one for one in instances if one.leads], what="a leader")
    return found[0]


def depose(etcd: Cluster, prefix: str) -> None:
    """End the leader's lease, and with it its key."""
    with closing(EtcdClient(etcd.access)) as client:
        held = client.get(f"{prefix}/leader".encode())
        assert held is not None
        client.revoke(held.lease, seconds=5)


async def depose_and_wait(etcd: Cluster, prefix: str, leader: Running) -> None:
    depose(etcd, prefix)
    await until(lambda: not leader.leads, what="the end of its term")
