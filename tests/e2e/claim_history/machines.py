"""Nodes of a few lines each: they report truthfully what the world runs, and come back whenever they can."""

import asyncio
import json
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress

from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException

from tests.e2e.claim_history.world import World

HEARTBEAT_SECONDS = 0.4
RECONNECT_SECONDS = 0.2


class Machines(threading.Thread):
    """All nodes, in a thread and an event loop of their own."""

    def __init__(self, world: World, url: str, nodes: Mapping[str, Sequence[str]]) -> None:
        super().__init__(name="machines", daemon=True)
        self._world, self._url, self._nodes = world, url, nodes
        self._stopped = threading.Event()

    def stop(self) -> None:
        self._stopped.set()
        self.join(10)

    def run(self) -> None:
        asyncio.run(self._run())

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for node_id, uuids in self._nodes.items():
                tasks.create_task(self._live(node_id, uuids))

    async def _live(self, node_id: str, uuids: Sequence[str]) -> None:
        while not self._stopped.is_set():
            with suppress(OSError, WebSocketException, TimeoutError, EOFError):
                await self._session(node_id, uuids)
            await asyncio.sleep(RECONNECT_SECONDS)

    async def _session(self, node_id: str, uuids: Sequence[str]) -> None:
        async with connect(self._url, compression=None, open_timeout=5, close_timeout=0.2) as socket:
            jobs, _ = self._world.report(node_id, uuids)
            gpus = [
                {"name": "NVIDIA H100", "memory_gb": 80, "uuid": uuid, "index": place}
                for place, uuid in enumerate(uuids)
            ]
            await socket.send(
                json.dumps(
                    {
                        "type": "node_register",
                        "version": "1.0.0",
                        "capability_schema_version": "1.1",
                        "node_id": node_id,
                        "hostname": node_id,
                        "hardware": {"cpu_cores": 8, "memory_gb": 64, "gpus": gpus},
                        "max_concurrent_jobs": 32,
                        "running_jobs": jobs,
                    }
                )
            )
            async with asyncio.timeout(5):
                while (answer := json.loads(await socket.recv()))["type"] != "node_register_ack":
                    if answer["type"] == "node_error":
                        return
            while not self._stopped.is_set():
                await socket.send(json.dumps(self._heartbeat(node_id, uuids)))
                await asyncio.sleep(HEARTBEAT_SECONDS)

    def _heartbeat(self, node_id: str, uuids: Sequence[str]) -> dict[str, object]:
        jobs, processes = self._world.report(node_id, uuids)
        return {
            "type": "node_heartbeat",
            "node_id": node_id,
            "timestamp": 0,
            "resource_usage": {
                "cpu_percent": 5,
                "mem_percent": 5,
                "gpu_percent": 5,
                "running_jobs": len(jobs),
            },
            "gpus": [
                {"uuid": uuid, "processes": count, "utilization_percent": 50, "memory_used_mb": 0}
                for uuid, count in zip(uuids, processes, strict=True)
            ],
            "probe_age_seconds": 0.0,
            "running_jobs": jobs,
        }
