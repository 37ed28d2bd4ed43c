"""The local socket with an agent behind it that does nothing but remember, on a loop of its own.

So that tests can be what workers and commands are: programs that block.
"""

import asyncio
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from gpu_agent.node.control.access import AccessPolicy, own_uid
from gpu_agent.node.control.server import ControlLimits, ControlServer
from gpu_agent.node.jobs import Jobs
from gpu_agent.node.public_jobs import PublicJobsState
from gpu_agent.node.snapshot import Snapshot
from gpu_agent.node.socket_file import listen
from gpu_agent.runtime.tasks import Tasks
from gpu_agent.session.types import DrainRequested, OwnerRequest, ResumeRequested, SessionSnapshot, State
from gpu_agent.wire.declaration import Owner
from gpu_agent.wire.inventory import Gpu, GpuReport, Host, Inventory, Outcome
from gpu_agent.wire.messages import NodeStatusMessage

HOST = Host(
    cpu_logical_cores=8,
    cpu_physical_cores=4,
    memory_total_mb=65536,
    memory_used_mb=1024,
    memory_available_mb=60000,
    platform="linux",
    hostname="box",
)
GPU = Gpu(uuid="GPU-1", name="NVIDIA L4", index=0, memory_mb=24576, memory_used_mb=1024)
INVENTORY = Inventory(host=HOST, gpu=GpuReport(outcome=Outcome.OK, gpus=(GPU,)))
READY = NodeStatusMessage(
    node_id="node-A", status="ready", reason="3 healthy beats in a row", reason_code="health_checks_passed"
)
VIEW = SessionSnapshot(
    state=State.REGISTERED,
    node_id="node-A",
    registry_status=READY,
    next_attempt_at=None,
    last_refusal=None,
    sequence=7,
    interval_seconds=15,
)


def snapshot(**more: object) -> Snapshot:
    """A ready node; fields of its session, or of the picture, as a test wants them."""
    of_session = {name: value for name, value in more.items() if hasattr(VIEW, name)}
    of_picture = {name: value for name, value in more.items() if name not in of_session}
    standing = Snapshot(
        session=replace(VIEW, **of_session),  # type: ignore[arg-type]  # a test's own fields
        registry_url="ws://r:8080/ws/node",
        owner=Owner(accept_public_jobs=True),
        public_jobs=PublicJobsState(wanted=True),
        inventory=INVENTORY,
        probe_age_seconds=1.0,
        state_since=10.0,
        link_since=5.0,
        status_received_at=20.0,
        last_heartbeat_at=30.0,
    )
    return replace(standing, **of_picture)  # type: ignore[arg-type]  # as above


class FakeAgent:
    """What the socket needs of an agent."""

    def __init__(self) -> None:
        self.jobs = Jobs()
        self.stands = snapshot()
        self.orders: list[OwnerRequest] = []
        self.refreshed = 0
        self.stuck = False

    def snapshot(self) -> Snapshot:
        return self.stands

    async def order(self, order: OwnerRequest) -> None:
        if self.stuck:
            await asyncio.Event().wait()
        self.orders.append(order)
        if isinstance(order, DrainRequested):
            self.stands = snapshot(drain_reason=order.reason, drain_until=1e9)
        if isinstance(order, ResumeRequested):
            self.stands = snapshot()

    async def refresh(self) -> None:
        self.refreshed += 1


class Served:
    """A socket that is served, and the agent behind it."""

    def __init__(self, path: Path, agent: FakeAgent) -> None:
        self.path = path
        self.agent = agent


@contextmanager
def serving(
    path: Path,
    *,
    bounds: ControlLimits | None = None,
    agent: FakeAgent | None = None,
    operators: int | None = None,
) -> Iterator[Served]:
    """Serve in a thread while the block runs."""
    standing = agent or FakeAgent()
    loop = asyncio.new_event_loop()
    serves = threading.Event()
    # What is opened next has the number of the folder by which a long path was reached.
    with listen(path) as listener, Path(os.devnull).open("rb"):
        house = AccessPolicy(own_uid(), path.lstat().st_gid, operators)

        async def serve() -> None:
            async with Tasks() as tasks:
                tasks.start("socket", ControlServer(standing, house, bounds=bounds).serve(listener, tasks))
                loop.call_soon(serves.set)
                await ending.wait()
                tasks.end()

        ending = asyncio.Event()
        thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), daemon=True)
        thread.start()
        assert serves.wait(10)
        try:
            yield Served(path, standing)
        finally:
            loop.call_soon_threadsafe(ending.set)
            thread.join(10)
            assert not thread.is_alive()
            loop.close()


@contextmanager
def reachable_folder() -> Iterator[Path]:
    """A folder that every user of this machine may enter, which pytest's own are not."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)
