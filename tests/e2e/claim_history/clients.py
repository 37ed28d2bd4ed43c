"""Schedulers that claim, renew, release, wait, and now and then let a claim expire while its job goes on."""

import http.client
import json
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.e2e.claim_history.world import World

TTL_SECONDS = 10.0
MARGIN_SECONDS = 1.0
"""Before its end a claim may be renewed; so close to it either answer is right."""
PAUSE_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of job."""

    demands: dict[str, object]
    exclusive: bool


KINDS = (
    Kind({"gpu_count": 1}, exclusive=True),
    Kind({"gpu_count": 2}, exclusive=True),
    Kind({"gpu_count": 1, "nodes": 2, "wait_seconds": 3}, exclusive=True),
    Kind({"min_gpu_memory_mb": 20_000}, exclusive=False),
    Kind({"gpu_count": 1, "wait_seconds": 3}, exclusive=True),
)
LARGE = Kind({"gpu_count": 4, "wait_seconds": 20}, exclusive=True)


class Client(threading.Thread):
    """One scheduler; each job has an id of its own."""

    def __init__(self, world: World, port: int, *, number: int, seed: int, kind: Kind | None = None) -> None:
        super().__init__(name=f"client-{number}", daemon=True)
        self._world, self._port, self._number, self._kind = world, port, number, kind
        self._dice = random.Random(seed)  # noqa: S311
        self._connection: http.client.HTTPConnection | None = None
        self._stopped = threading.Event()
        self.longest_wait_seconds = 0.0

    def stop(self) -> None:
        self._stopped.set()
        self.join(60)

    def run(self) -> None:
        count = 0
        while not self._stopped.is_set():
            count += 1
            self._work(f"job-{self._number}-{count}")
            time.sleep(PAUSE_SECONDS)
        if self._connection is not None:
            self._connection.close()

    def _work(self, job_id: str) -> None:
        kind = self._kind or self._dice.choice(KINDS)
        asked = time.monotonic()
        demands = {"job_id": job_id, "ttl_seconds": TTL_SECONDS, **kind.demands}
        claim = self._claim(demands)
        while claim is None and kind is LARGE and not self._stopped.is_set():
            claim = self._claim(demands)  # it keeps its place
        if claim is None:
            return
        self.longest_wait_seconds = max(self.longest_wait_seconds, time.monotonic() - asked)
        nodes = [one["node_id"] for one in claim["nodes"]]
        gpus = [(one["node_id"], uuid) for one in claim["nodes"] for uuid in one["gpu_uuids"]]
        if len(nodes) != kind.demands.get("nodes", 1):
            self._world.violate(f"{job_id} got {len(nodes)} nodes for {kind.demands}")
        self._world.start(job_id, nodes, gpus, exclusive=kind.exclusive)
        expires = self._dice.random() < 0.05
        try:
            self._run_job(job_id, claim["claim_id"], expires=expires)
        finally:
            self._world.end(job_id)
        if not expires:
            self._until_answered(
                lambda: self._ask("DELETE", f"/v1/claims/{job_id}?claim_id={claim['claim_id']}")
            )

    def _run_job(self, job_id: str, claim_id: str, *, expires: bool) -> None:
        """Run a job, and renew its claim on the way; or let the claim expire and run on for a while."""
        if expires:
            time.sleep(TTL_SECONDS + self._dice.uniform(0.5, 3.0))
            return
        valid_until = time.monotonic() + TTL_SECONDS
        ends = time.monotonic() + self._dice.uniform(0.1, 2.5)
        while time.monotonic() < ends:
            time.sleep(self._dice.uniform(0.05, 0.5))
            sent = time.monotonic()
            answer = self._until_answered(
                lambda: self._ask("POST", f"/v1/claims/{job_id}/renew", {"claim_id": claim_id})
            )
            if answer is None:
                continue
            status, document = answer
            if status == http.client.OK and document["claim_id"] == claim_id:
                valid_until = sent + TTL_SECONDS
            elif time.monotonic() < valid_until - MARGIN_SECONDS:
                self._world.violate(f"the claim of {job_id} was lost while it was valid: {status} {document}")
                return

    def _claim(self, job: dict[str, object]) -> dict[str, Any] | None:
        answer = self._until_answered(lambda: self._ask("POST", "/v1/claims", job))
        return None if answer is None or answer[0] != http.client.OK else answer[1]

    def _until_answered(
        self, ask: Callable[[], tuple[int, Any] | None], *, seconds: float = 30.0
    ) -> tuple[int, Any] | None:
        """Send the same request again until it has an answer that is no REGISTRY_BUSY (§4)."""
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            answer = ask()
            if answer is not None and answer[0] != http.client.SERVICE_UNAVAILABLE:
                return answer
            time.sleep(PAUSE_SECONDS)
        return None

    def _ask(self, method: str, path: str, body: object | None = None) -> tuple[int, Any] | None:
        """Send a request; None where no whole answer came."""
        connection = self._connection or http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        self._connection = connection
        try:
            written = None if body is None else json.dumps(body)
            connection.request(method, path, written, {"Content-Type": "application/json"})
            response = connection.getresponse()
            content = response.read()
            return response.status, json.loads(content) if content else None
        except (OSError, http.client.HTTPException, ValueError):
            connection.close()
            self._connection = None
            return None
