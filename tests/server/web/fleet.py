"""A fleet for the page: nodes of many kinds and states, played over real sockets to a real registry.

`ServedFleet` runs it in a thread of its own, for a browser whose driver blocks the test's thread.
"""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from math import nan
from types import TracebackType
from typing import Any, Self, TypeVar

from gpu_agent.registry.gpu_history import GpuHistory
from gpu_agent.registry.gpus import GpuState
from gpu_agent.registry.job import Job
from gpu_agent.registry.node import NodeRecord
from gpu_agent.registry.settings import Thresholds
from gpu_agent.registry.tokens import Role
from gpu_agent.runtime.address import bound_address
from gpu_agent.server.api.app import ApiServer
from gpu_agent.server.service import RegistryService
from gpu_agent.store.base import Store
from gpu_agent.wire.api import ClaimView, NodeDetail
from tests.server.api_harness import operator_token
from tests.server.harness import LOOPBACK, Node, known, node, running, until
from tests.waiting import patience

T = TypeVar("T")

BEAT_SECONDS = 4.0
CALM = Thresholds(
    heartbeat_interval_seconds=15.0, scan_interval_seconds=0.05, heartbeat_timeout_seconds=3600.0
)


@dataclass
class Machine:
    """A node that is played, with what it reports."""

    hostname: str
    gpu: str = "NVIDIA L4"
    count: int = 8
    memory_mb: int = 24576
    labels: dict[str, str] = field(default_factory=dict)
    models: tuple[str, ...] = ()
    parents: Sequence[str | None] = ()
    """Of MIG devices: the UUID of each one's GPU."""
    figures: dict[int, dict[str, Any]] = field(default_factory=dict)
    """By place: what differs from a GPU that idles."""
    cpu_percent: float = 20.0
    jobs: tuple[str, ...] = ()
    node_id: str = ""
    node: Node | None = None

    def uuids(self) -> list[str]:
        return [f"GPU-{self.hostname}-{place}" for place in range(self.count)]

    def registration(self) -> dict[str, Any]:
        parents = self.parents or (None,) * self.count
        gpus = [
            {
                "name": self.gpu,
                "memory_gb": self.memory_mb // 1024,
                "memory_mb": self.memory_mb,
                "uuid": uuid,
                "index": place,
                **({} if parent is None else {"parent_uuid": parent}),
            }
            for place, (uuid, parent) in enumerate(zip(self.uuids(), parents, strict=True))
        ]
        hardware = {
            "cpu_cores": 96,
            "memory_gb": 1024,
            "gpus": gpus,
            "driver_version": "565.57.01",
            "cuda_version": "12.7",
        }
        installed = [
            {"model_id": name, "version": "1", "enabled": True, "kind": "llm"} for name in self.models
        ]
        return {
            "type": "node_register",
            "schema_version": "1.1",
            "version": "1.0.0",
            "hostname": self.hostname,
            "platform": "linux",
            "hardware": hardware,
            "installed_models": installed,
            "accept_public_jobs": False,
            "max_concurrent_jobs": 8,
            "labels": self.labels,
        }

    def heartbeat(self) -> dict[str, Any]:
        gpus = [
            {
                "uuid": uuid,
                "utilization_percent": 0.0,
                "memory_used_mb": 512,
                "memory_total_mb": self.memory_mb,
                "temperature_c": 41.0,
                "power_w": 70.0,
                "processes": 0,
                "health": "ok",
                "reasons": [],
                **self.figures.get(place, {}),
            }
            for place, uuid in enumerate(self.uuids())
        ]
        usage = {
            "cpu_percent": self.cpu_percent,
            "mem_percent": 41.0,
            "gpu_percent": 0.0,
            "running_jobs": len(self.jobs),
        }
        return {
            "type": "node_heartbeat",
            "node_id": self.node_id,
            "timestamp": 1_795_517_679_000,
            "resource_usage": usage,
            "running_jobs": list(self.jobs),
            "gpus": gpus,
        }


def busy(percent: float = 80.0, used_mb: int = 50_000, **more: object) -> dict[str, Any]:
    return {
        "utilization_percent": percent,
        "memory_used_mb": used_mb,
        "temperature_c": 61.0,
        "power_w": 590.0,
        "processes": 1,
        **more,
    }


def _differs(record: NodeRecord, before: float | None) -> bool:
    return record.liveness.last_heartbeat_at != before


class Fleet:
    """A registry and the nodes that are played to it."""

    def __init__(self, service: RegistryService, nodes: AsyncExitStack) -> None:
        self.service = service
        self._nodes = nodes
        self.machines: dict[str, Machine] = {}
        self.waiting: dict[str, asyncio.Future[object]] = {}
        """Claims that wait for capacity, by job."""

    async def join(self, machine: Machine, *, ready: bool = True) -> Machine:
        """Register a node, and let it prove itself."""
        token = None
        if self.service.auth_on:
            made = await self.service.tokens.create_join()
            token = getattr(made, "token", None)
        played = machine.node = await self._nodes.enter_async_context(node(self.service, token=token))
        await played.send(machine.registration())
        ack = await played.receive_type("node_register_ack")
        machine.node_id = played.node_id = ack["node_id"]
        self.machines[machine.hostname] = machine
        for _ in range(3 if ready else 1):
            await played.send(machine.heartbeat())
        if ready:
            await until(
                lambda: self.status_of(machine) != "registering", what=f"{machine.hostname} has a status"
            )
        return machine

    async def beat(self, machine: Machine, times: int = 1) -> None:
        """Send what a node reports now, and wait until the registry has it."""
        assert machine.node is not None
        record = self.service.record(machine.node_id)
        assert record is not None
        for _ in range(times):
            before = record.liveness.last_heartbeat_at
            await machine.node.send(machine.heartbeat())
            arrived = partial(_differs, record, before)
            await until(arrived, what="a heartbeat arrives")

    async def claim(self, job_id: str, machine: Machine, *, gpu_count: int) -> ClaimView:
        job = Job(job_id=job_id, allowed_nodes=(machine.node_id,), gpu_count=gpu_count, ttl_seconds=3600)
        placement = await self.service.claim(job)
        assert isinstance(placement, ClaimView), placement
        return placement

    def wait_for(self, job: Job) -> None:
        """Ask for a job's claim, and wait for it until the fleet ends."""
        self.waiting[job.job_id] = asyncio.ensure_future(self.service.claim(job))

    def known(self, machine: Machine) -> NodeDetail:
        return known(self.service, machine.node_id)

    def status_of(self, machine: Machine) -> str:
        return self.known(machine).status


@asynccontextmanager
async def fleet(
    *, auth_on: bool = True, store: Store | None = None, thresholds: Thresholds = CALM
) -> AsyncIterator[Fleet]:
    """A registry without nodes."""
    async with (
        running(thresholds, auth_on=auth_on, store=store) as service,
        AsyncExitStack() as nodes,
    ):
        played = Fleet(service, nodes)
        yield played
        for waiting in played.waiting.values():
            waiting.cancel()


def _h100(hostname: str, cpu_percent: float) -> Machine:
    return Machine(
        hostname,
        "NVIDIA H100 80GB HBM3",
        8,
        81920,
        {"zone": "a", "rack": "12"},
        ("llama-3.3-70b-instruct",),
        cpu_percent=cpu_percent,
    )


async def populate(fleet: Fleet) -> None:
    """Let the machines join that the pictures show: each state of a node and of a GPU is among them."""
    await _join_faulty(fleet)
    await _join_noteworthy(fleet)
    await _join_healthy(fleet)
    for machine in fleet.machines.values():
        write_past(fleet, machine)


_BEFORE_A_FAULT = {"utilization_percent": 71.0, "temperature_c": 58.0, "power_w": 480.0}


def _was(state: GpuState, name: str, wave: float, point: int) -> float:
    """Return a figure so many points ago: one that is unknown by a fault was known until lately."""
    now = getattr(state, name)
    if now is None and (name not in _BEFORE_A_FAULT or point < 40 or state.health == "ok"):
        return nan
    was = _BEFORE_A_FAULT[name] if now is None else float(now)
    if name in {"free_step", "temperature_c"}:
        return was
    return min(100.0, wave * was) if name == "utilization_percent" else wave * was


class _PastGpus(dict[str, None]):
    """A node's GPUs as they were: their UUIDs, and four columns of figures."""

    figures: tuple[float, ...] = ()


def write_past(fleet: Fleet, machine: Machine) -> None:
    """Let the last 15 minutes be as if the node had reported them: much as now, and never twice the same."""
    record = fleet.service.record(machine.node_id)
    assert record is not None
    states = list(record.gpus.values())
    past, now = _PastGpus(dict.fromkeys(record.gpus)), time.monotonic()
    waves = (1.0, 0.98, 1.02, 0.7, 0.95, 1.01, 0.99, 0.93, 1.0, 0.85, 1.03)
    record.gpu_history = GpuHistory()
    for point in range(59, -1, -1):
        columns = [
            _was(state, name, waves[(7 * point + 3 * place) % len(waves)], point)
            for name in ("utilization_percent", "free_step", "temperature_c", "power_w")
            for place, state in enumerate(states)
        ]
        past.figures = tuple(columns)
        record.gpu_history.add(past, None, now - 15.0 * point)  # type: ignore[arg-type]  # as much as it needs


async def _join_faulty(fleet: Fleet) -> None:
    lost = await fleet.join(_h100("h100-02", 38.0))
    await fleet.claim("finetune-91", lost, gpu_count=4)
    await fleet.claim("train-7b-042", lost, gpu_count=4)
    lost.jobs = ("finetune-91", "train-7b-042")
    use = ((82, 65000), (65, 55000), (67, 46000), (98, 47000), (9, 9), (98, 63000), (75, 72000), (85, 57000))
    lost.figures = {place: busy(percent, used) for place, (percent, used) in enumerate(use)}
    await fleet.beat(lost)
    unknown = ("utilization_percent", "memory_used_mb", "temperature_c", "power_w", "processes")
    lost.figures[4] = {**dict.fromkeys(unknown), "health": "lost", "reasons": ["xid_79", "gpu_lost"]}
    await fleet.beat(lost, 3)
    silent = await fleet.join(Machine("h200-01", "NVIDIA H200", 8, 144384, {"zone": "b"}, ("bge-m3",)))
    assert silent.node is not None
    await silent.node.send({"type": "node_unregister", "node_id": silent.node_id, "reason": "shutdown"})
    await until(lambda: fleet.status_of(silent) == "offline", what="a node is offline")
    hung = await fleet.join(Machine("l40s-01", "NVIDIA L40S", 4, 46080, {"zone": "a"}, ("whisper-large-v3",)))
    for place in range(4):
        hung.figures[place] = {**dict.fromkeys(unknown), "health": "unknown", "reasons": ["nvml_hung"]}
    await fleet.beat(hung, 3)
    hot = await fleet.join(_h100("h100-03", 31.0))
    await fleet.claim("eval-mmlu-18", hot, gpu_count=3)
    await fleet.claim("sft-qwen-5", hot, gpu_count=1)
    hot.jobs = ("eval-mmlu-18", "sft-qwen-5")
    hot.figures = {0: busy(72, 55000), 1: busy(74, 64000), 2: busy(63, 58000)}
    hot.figures[3] = busy(89, 48000, temperature_c=94.0, health="degraded", reasons=["hw_thermal_slowdown"])
    await fleet.beat(hot, 3)
    models = ("bge-m3", "whisper-large-v3")
    remap = await fleet.join(Machine("a100-01", "NVIDIA A100-SXM4-80GB", 4, 81920, {"zone": "b"}, models))
    await fleet.claim("asr-batch", remap, gpu_count=2)
    remap.jobs = ("asr-batch",)
    remap.figures = {0: busy(71, 62000), 1: busy(68, 50000)}
    remap.figures[2] = {"health": "degraded", "reasons": ["row_remap_pending"]}
    await fleet.beat(remap, 3)


async def _join_noteworthy(fleet: Fleet) -> None:
    amd = await fleet.join(Machine("mi300-01", "AMD Instinct MI300X", 8, 196608, {"zone": "b"}))
    amd.figures = {6: busy(44, 36000), 7: busy(48, 54000)}
    await fleet.beat(amd, 3)
    draining = await fleet.join(_h100("h100-04", 29.0))
    await fleet.claim("train-7b-039", draining, gpu_count=2)
    draining.jobs = ("train-7b-039",)
    draining.figures = {0: busy(81, 51000), 1: busy(70, 55000)}
    await fleet.beat(draining, 3)
    await fleet.service.drain(draining.node_id, deadline_seconds=3600, reason="new driver 570.86")
    desk = await fleet.join(
        Machine("workstation-under-the-desk-03.physics.example.org", "NVIDIA GeForce RTX 4090", 2, 24564)
    )
    reason = "fan replaced, watch until Thursday"
    await fleet.service.cordon_gpu(desk.node_id, desk.uuids()[1], reason=reason, by="ana")
    await fleet.join(Machine("gb10-01", "NVIDIA GB10", 1, 122880, {"zone": "lab"}), ready=False)


async def _join_healthy(fleet: Fleet) -> None:
    parents = ("GPU-a",) * 7 + ("GPU-b",) * 7
    mig = await fleet.join(
        Machine("a100-02", "NVIDIA A100 80GB MIG 1g.10gb", 14, 9728, {"zone": "b"}, ("bge-m3",), parents)
    )
    mig.jobs = tuple(f"tts-{number}" for number in range(1, 6))
    for job_id in mig.jobs:
        await fleet.claim(job_id, mig, gpu_count=1)
    for place, gpu in enumerate(fleet.known(mig).gpus):
        used = {"memory_used_mb": 6000 + 500 * place, "processes": 1} if gpu.claimed_by else {}
        mig.figures[place] = {"utilization_percent": None, "temperature_c": None, "power_w": None, **used}
    await fleet.beat(mig, 3)
    whole = await fleet.join(_h100("h100-01", 57.0))
    await fleet.claim("train-llm-70b", whole, gpu_count=8)
    whole.jobs = ("train-llm-70b",)
    whole.figures = {place: busy(60 + 5 * place, 44000 + 4000 * place) for place in range(8)}
    await fleet.beat(whole, 3)
    await fleet.join(Machine("l4-01", "NVIDIA L4", 8, 24576, {"zone": "a", "rack": "07"}, ("opus-mt-zh-en",)))


class ServedFleet:
    """A fleet and its page, in a thread with an event loop of its own."""

    def __init__(
        self, *, auth_on: bool = True, populated: bool = True, thresholds: Thresholds = CALM
    ) -> None:
        self._auth_on, self._populated, self._thresholds = auth_on, populated, thresholds
        self._loop = asyncio.new_event_loop()
        self._started, self._stop = threading.Event(), asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="fleet", daemon=True)
        self.fleet: Fleet
        self.url = ""
        self.tokens: dict[Role, str] = {}

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._started.wait(patience(60)), "the fleet did not start"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(patience(20))

    def do(self, action: Coroutine[Any, Any, T]) -> T:
        """Run this on the fleet's loop."""
        return asyncio.run_coroutine_threadsafe(action, self._loop).result(patience(20))

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _stopped(self, *, within_seconds: float) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(within_seconds):
                await self._stop.wait()
        return self._stop.is_set()

    async def _serve(self) -> None:
        async with fleet(auth_on=self._auth_on, thresholds=self._thresholds) as self.fleet:
            listener = LOOPBACK.bind()
            server = ApiServer(self.fleet.service, listener, address=LOOPBACK)
            serving = asyncio.ensure_future(server.serve())
            self.url = f"http://{bound_address(listener)}"
            for role in Role:
                self.tokens[role] = await operator_token(self.fleet.service, role)
            if self._populated:
                await populate(self.fleet)
            self._started.set()
            while not await self._stopped(within_seconds=BEAT_SECONDS):
                for machine in tuple(self.fleet.machines.values()):
                    found = self.fleet.service.node(machine.node_id)
                    if machine.node is None or found is None or not found.connected:
                        continue
                    if found.status != "registering":  # a node that registers goes on doing so
                        await machine.node.send(machine.heartbeat())
            server.stop()
            await asyncio.wait_for(serving, patience(10))
