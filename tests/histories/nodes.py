"""Nodes of few lines: they connect to any address of the registry, report truthfully, and come back."""

import asyncio
import json
import random
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

from tests.histories.record import Machine, Shown

HEARTBEAT_SECONDS = 0.4
RECONNECT_SECONDS = 0.2
SILENT_SECONDS = 5.0
"""A registry that acknowledges no registration within this time is left."""


@dataclass(frozen=True, slots=True)
class Running:
    """A job that goes on after its claim expired."""

    job: str
    nodes: tuple[tuple[str, tuple[str, ...]], ...]
    until: float


class World:
    """What really runs on the machines. Thread-safe."""

    def __init__(self) -> None:
        self._running: list[Running] = []
        self._lock = threading.Lock()

    def run(self, claim: Shown, *, until: float) -> None:
        with self._lock:
            now = time.monotonic()
            self._running = [one for one in self._running if one.until > now]
            self._running.append(Running(claim.job, claim.nodes, until))

    def clear(self) -> None:
        with self._lock:
            self._running.clear()

    def report(self, machine: Machine) -> tuple[list[str], list[int]]:
        """Return the jobs on a machine, and the processes on each of its GPUs."""
        with self._lock:
            now = time.monotonic()
            here = [
                (one.job, gpus)
                for one in self._running
                for node, gpus in one.nodes
                if node == machine.node_id and one.until > now
            ]
        return sorted({job for job, _ in here}), [
            sum(gpu in gpus for _, gpus in here) for gpu in machine.gpus
        ]


class Nodes(threading.Thread):
    """All nodes, in a thread and an event loop of their own, until `stop`."""

    def __init__(self, fleet: Sequence[Machine], urls: Sequence[str], *, seed: int) -> None:
        super().__init__(name="nodes", daemon=True)
        self._fleet, self._urls = fleet, urls
        self._dice = random.Random(seed)
        self._stopped = threading.Event()
        self.world = World()

    def stop(self) -> None:
        self._stopped.set()
        self.join(SILENT_SECONDS + 10)

    def run(self) -> None:
        asyncio.run(self._run())

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for machine in self._fleet:
                tasks.create_task(self._live(machine))

    async def _live(self, machine: Machine) -> None:
        while not self._stopped.is_set():
            with suppress(OSError, WebSocketException, TimeoutError, EOFError):
                url = self._dice.choice(self._urls)
                async with connect(
                    url, compression=None, proxy=None, open_timeout=SILENT_SECONDS, close_timeout=0.2
                ) as socket:
                    await self._session(machine, socket)
            await asyncio.sleep(RECONNECT_SECONDS)

    async def _session(self, machine: Machine, socket: ClientConnection) -> None:
        await socket.send(json.dumps(self._registration(machine)))
        async with asyncio.timeout(SILENT_SECONDS):
            while (answer := json.loads(await socket.recv()))["type"] != "node_register_ack":
                if answer["type"] == "node_error":
                    return
        while not self._stopped.is_set():
            await socket.send(json.dumps(self._heartbeat(machine)))
            with suppress(TimeoutError):
                async with asyncio.timeout(HEARTBEAT_SECONDS):
                    async for _ in socket:  # so that nothing stays in the registry's buffers
                        pass

    def _registration(self, machine: Machine) -> dict[str, object]:
        jobs, _ = self.world.report(machine)
        gpus = [
            {"name": "NVIDIA H100", "memory_gb": machine.memory_mb >> 10, "uuid": uuid, "index": place}
            for place, uuid in enumerate(machine.gpus)
        ]
        return {
            "type": "node_register",
            "version": "1.0.0",
            "capability_schema_version": "1.1",
            "node_id": machine.node_id,
            "hostname": machine.node_id,
            "hardware": {"cpu_cores": 8, "memory_gb": 64, "gpus": gpus},
            "max_concurrent_jobs": machine.slots,
            "running_jobs": jobs,
        }

    def _heartbeat(self, machine: Machine) -> dict[str, object]:
        jobs, processes = self.world.report(machine)
        return {
            "type": "node_heartbeat",
            "node_id": machine.node_id,
            "timestamp": 0,
            "resource_usage": {
                "cpu_percent": 5,
                "mem_percent": 5,
                "gpu_percent": 5,
                "running_jobs": len(jobs),
            },
            "gpus": [
                {"uuid": uuid, "processes": count, "utilization_percent": 50, "memory_used_mb": 0}
                for uuid, count in zip(machine.gpus, processes, strict=True)
            ],
            "probe_age_seconds": 0.0,
            "running_jobs": jobs,
        }
