"""The control socket before a fake agent, served by an event loop of its own.

So tests can be what workers and commands are: programs that block.
"""

import asyncio
import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from gpu_agent.node.control.access import AccessPolicy, listen
from gpu_agent.node.control.explain import explain
from gpu_agent.node.control.handlers import RequestHandler, encode_answer
from gpu_agent.node.control.server import ControlLimits, ControlServer
from gpu_agent.node.control.status import Instant, status_document
from gpu_agent.node.jobs import AnnouncedJob, Jobs
from gpu_agent.node.public_jobs import PublicJobsState
from gpu_agent.node.snapshot import Snapshot
from gpu_agent.runtime.tasks import Tasks
from gpu_agent.session.types import DrainRequested, OwnerRequest, ResumeRequested, SessionSnapshot, State
from gpu_agent.wire.declaration import Owner
from gpu_agent.wire.inventory import Gpu, GpuReport, Host, Inventory, Outcome
from gpu_agent.wire.messages import NodeStatusMessage
from tests.waiting import patience

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
    node_id="node-A",
    status="ready",
    reason="3 healthy heartbeats in a row",
    reason_code="health_checks_passed",
)
VIEW = SessionSnapshot(
    state=State.REGISTERED,
    address="ws://r:8080/ws/node",
    node_id="node-A",
    registry_status=READY,
    next_attempt_at=None,
    last_refusal=None,
    sequence=7,
    interval_seconds=15,
)


def snapshot(**fields: object) -> Snapshot:
    """A ready node; `fields` replace those of its session, or of the snapshot."""
    of_session = {name: value for name, value in fields.items() if hasattr(VIEW, name)}
    of_snapshot = {name: value for name, value in fields.items() if name not in of_session}
    ready = Snapshot(
        session=replace(VIEW, **of_session),  # type: ignore[arg-type]  # a test's own fields
        registry_urls=("ws://r:8080/ws/node",),
        owner=Owner(accept_public_jobs=True),
        public_jobs=PublicJobsState(wanted=True),
        inventory=INVENTORY,
        probe_age_seconds=1.0,
        state_since=10.0,
        link_since=5.0,
        status_received_at=20.0,
        last_heartbeat_at=30.0,
    )
    return replace(ready, **of_snapshot)  # type: ignore[arg-type]  # as above


NOW = Instant(monotonic=100.0, wall=5000.0)


def jobs_in_flight(*jobs: AnnouncedJob) -> Jobs:
    """Jobs as workers announced them."""
    announced = Jobs()
    for job in jobs:
        assert announced.start(job.job_id, job.worker, uid=job.uid, now=job.since) is None
    return announced


def status_of(
    jobs: Jobs | None = None, *, started_at: float = 4000.0, instant: Instant = NOW, **fields: object
) -> dict[str, Any]:
    """What the agent answers to `status`, as a reader of the socket parses it."""
    document = status_document(snapshot(**fields), jobs or Jobs(), started_at=started_at, instant=instant)
    return dict(json.loads(encode_answer(document))["answer"])


def why_of(jobs: Jobs | None = None, **fields: object) -> dict[str, Any]:
    """What the agent answers to `explain`, as a reader of the socket parses it."""
    document = explain(snapshot(**fields), jobs or Jobs(), instant=NOW)
    return dict(json.loads(encode_answer(document))["answer"])


class FakeAgent:
    """An agent that records what the control socket asks of it."""

    def __init__(self) -> None:
        self.jobs = Jobs()
        self.state = self.resumed = snapshot()
        self.requests: list[OwnerRequest] = []
        self.refreshed = 0
        self.stuck = False

    def snapshot(self) -> Snapshot:
        return self.state

    async def submit(self, request: OwnerRequest) -> None:
        if self.stuck:
            await asyncio.Event().wait()
        self.requests.append(request)
        if isinstance(request, DrainRequested):
            self.state = snapshot(drain_reason=request.reason, drain_until=1e9)
        if isinstance(request, ResumeRequested):
            self.state = self.resumed

    async def refresh(self) -> None:
        self.refreshed += 1

    def handler(self, policy: AccessPolicy, wall: Callable[[], float] = time.time) -> RequestHandler:
        return RequestHandler(
            self.jobs, policy, snapshot=self.snapshot, submit=self.submit, refresh=self.refresh, wall=wall
        )


class Served:
    """A socket that is served, and the agent behind it."""

    def __init__(self, path: Path, agent: FakeAgent) -> None:
        self.path = path
        self.agent = agent


@contextmanager
def serving(
    path: Path,
    *,
    limits: ControlLimits | None = None,
    agent: FakeAgent | None = None,
    operators: int | None = None,
) -> Iterator[Served]:
    """Serve in a thread while the block runs."""
    fake = agent or FakeAgent()
    loop = asyncio.new_event_loop()
    ready = threading.Event()
    # The next file that is opened gets the number of the folder through which a long path was reached.
    with listen(path) as listener, Path(os.devnull).open("rb"):
        policy = AccessPolicy(os.geteuid(), path.lstat().st_gid, operators)

        async def serve() -> None:
            async with Tasks() as tasks:
                server = ControlServer(fake.handler(policy), policy, limits=limits)
                tasks.start("socket", server.serve(listener, tasks))
                loop.call_soon(ready.set)
                await stopping.wait()
                tasks.end()

        stopping = asyncio.Event()
        thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), daemon=True)
        thread.start()
        assert ready.wait(patience(10))
        try:
            yield Served(path, fake)
        finally:
            loop.call_soon_threadsafe(stopping.set)
            thread.join(patience(10))
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
