"""Instances of one registry as their operators' API: a leader, and standbys that forward to it.

With `TEST_FORWARDED` set many tests of the API run again through a standby, and with `TEST_ETCD` on etcd:
`make test-instances`.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx

from gpu_agent.runtime.address import Address, bound_address
from gpu_agent.server.api.app import ApiServer
from gpu_agent.server.api.instance import InstanceAnswers
from gpu_agent.server.event_log import RegistryEventLog
from gpu_agent.server.health import Size
from gpu_agent.server.leadership.forward import Forwarder, LeaderApi
from gpu_agent.server.service import RegistryService
from gpu_agent.server.tls import Encryption
from gpu_agent.wire.api import CheckView, MemberRole, MemberView
from tests.server.harness import LOOPBACK
from tests.waiting import patience

FORWARDED = bool(os.environ.get("TEST_FORWARDED"))
"""Whether requests of the tests of the API go through a standby."""
SECRET = "what-instances-share"
OWN_METRICS = b"# TYPE gpu_registry_leads gauge\ngpu_registry_leads %d\n"

MEMBERS_BY_COPY = (MemberView(name="standby", role=MemberRole.STANDBY, since=1.0, nodes=2),)


@dataclass
class InstanceUnderTest:
    """One instance; `leader` is where it forwards to, and `lease_valid` whether it may answer as leader."""

    server: ApiServer
    address: Address
    forwarder: Forwarder
    tls: Encryption | None = None
    leader: LeaderApi | None = None
    lease_valid: bool = True
    copy_is_current: bool = True
    problem: str | None = None

    @property
    def url(self) -> str:
        host = self.address if self.tls is None else f"localhost:{self.address.port}"
        return f"http{'' if self.tls is None else 's'}://{host}"

    @property
    def api(self) -> LeaderApi:
        """Where other instances find it."""
        return LeaderApi(self.url, None if self.tls is None else self.tls.pin, SECRET)

    def lead(self, service: RegistryService) -> None:
        self.lease_valid = True
        self.forwarder.cut_off()
        self.server.attach(service, may_answer=lambda: self.lease_valid)


@asynccontextmanager
async def instance(
    *, leader: LeaderApi | None = None, tls: Encryption | None = None, copy: RegistryService | None = None
) -> AsyncIterator[InstanceUnderTest]:
    """An instance that leads nothing yet; tokens and events it has of its `copy`."""
    listener = LOOPBACK.bind()
    seen: list[InstanceUnderTest] = []
    forwarder = Forwarder(lambda: seen[0].leader)
    answers = InstanceAnswers(
        elsewhere=forwarder,
        size=lambda: Size(nodes=3, connections=2),
        readiness=lambda: (_check(seen[0].problem),),
        metrics=lambda: OWN_METRICS % (seen[0].leader is None),
        is_linked=lambda: seen[0].leader is not None,
        members=lambda: MEMBERS_BY_COPY,
        authenticate=None if copy is None or not copy.auth_on else copy.tokens.authenticate,
        event_log=RegistryEventLog() if copy is None else copy.event_log,
        copy_is_current=lambda: seen[0].copy_is_current,
        secret=lambda: SECRET,
    )
    server = ApiServer(None, listener, address=LOOPBACK, tls=tls, instance=answers)
    one = InstanceUnderTest(server, bound_address(listener), forwarder, tls, leader)
    seen.append(one)
    serving = asyncio.ensure_future(server.serve())
    try:
        yield one
    finally:
        await forwarder.close()
        server.stop()
        await asyncio.wait_for(serving, patience(5))


def _check(problem: str | None) -> CheckView:
    return CheckView(name="leader", ok=problem is None, detail=problem or "nodes may connect here")


@asynccontextmanager
async def client(of: InstanceUnderTest) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=of.url, trust_env=False) as one:
        yield one


@asynccontextmanager
async def forwarded(service: RegistryService) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a standby whose leader has the registry."""
    async with instance() as leader, instance(leader=leader.api, copy=service) as standby:
        leader.lead(service)
        async with client(standby) as one:
            yield one
