"""After any events the queue grants what it would grant if each waiting job was tried on every node."""

from collections.abc import Iterator
from random import Random
from typing import Any

import pytest

from gpu_agent.registry.actions import Answer
from gpu_agent.registry.events import (
    ClaimWaitEnded,
    ConnectionLost,
    CordonRequested,
    DrainRequested,
    Event,
    GpuCordonRequested,
    RemovalRequested,
    ResumeRequested,
)
from gpu_agent.registry.queue import ClaimQueue, Waiting
from gpu_agent.wire.messages import GpuDeclaration, GpuFigures, Hardware, ResourceUsage
from tests.registry.harness import Registry, model, of
from tests.registry.test_claims_at_random import DEVICES, PARENT, SHARED

NODES = 5
JOBS = 24
STEPS = 300
THRESHOLDS: dict[str, Any] = {
    "heartbeat_interval_seconds": 200.0,
    "heartbeat_timeout_seconds": 600.0,
    "claim_ttl_seconds": 60.0,
    "queue_reserve_after_seconds": 5.0,
    "flap_limit": 1000,
    "consecutive_failures": 1000,
    "failures_in_window": 5,
}


class World:
    """Five nodes of different kinds, and jobs with demands of their own."""

    def __init__(self, seed: int) -> None:
        self.dice = Random(seed)  # noqa: S311 - the same events for the same seed
        self.registry = Registry(auth_off=True, **THRESHOLDS)
        self.connection = 0
        self.asked: list[int] = []
        self.granted_later = 0
        for place in range(1, NODES + 1):
            self.arrive(f"node-{place}")
            self.registry.heartbeats(3, self.connection, node_id=f"node-{place}", gpus=())

    def step(self) -> object:
        """Let one thing happen, offer what it freed, and return what the registry holds and answered."""
        dice, registry = self.dice, self.registry
        node_id, job = f"node-{dice.randint(1, NODES)}", f"job-{dice.randint(1, JOBS)}"
        record = registry.fleet.node(node_id)
        known = record is not None and record.connection is not None
        event = dice.choices(range(7), (30, 30, 15, 15, 3, 7, 3))[0]
        if not known or event == 6:
            self.arrive(node_id)
            self.registry.heartbeats(3, self.connection, every=0.1, node_id=node_id, gpus=())
        elif event == 0:
            self.heartbeat(node_id)
        elif event == 1:
            self.claim(job)
        elif event == 2:
            self.end_claim()
        elif event == 3:
            registry.pass_time(dice.choice((0.1, 1.0, 5.0)))
        elif event == 4 and self.asked:
            registry.do(ClaimWaitEnded(dice.choice(self.asked)))
        elif event == 5:
            registry.do(self.node_request(node_id))
        before = {one.job_id for one in registry.fleet.claims()}
        registry.claim("probe", required_models=("none",))
        self.granted_later += len({one.job_id for one in registry.fleet.claims()} - before)
        claims = sorted(
            (one.job_id, one.claim_id, one.grants, one.expires_at) for one in registry.fleet.claims()
        )
        answers = [(one.ref, type(one.result).__name__) for one in of(Answer, registry.done)]
        waiting = [
            (one.job.job_id, sorted(one.reserved), len(one.requests)) for one in registry.fleet.queue()
        ]
        return registry.now, claims, answers, waiting

    def arrive(self, node_id: str) -> None:
        dice, place = self.dice, int(node_id[-1])
        name, memory = (("L4", 24), ("A100", 40), ("A100", 40), ("H100", 80), ("H100", 80))[place - 1]
        own = tuple(
            GpuDeclaration(uuid=f"GPU-{place}-{number}", name=name, memory_gb=memory)
            for number in range((1, 2, 2, 4, 3)[place - 1])
        )
        choices = (own, own, (*own, SHARED), (*own[:1], PARENT), (*own[:1], PARENT, *DEVICES))
        self.connection += 1
        self.registry.arrive(
            None,
            self.connection,
            node_id,
            hardware=Hardware(cpu_cores=8, memory_gb=64, gpus=dice.choice(choices)),
            labels={"zone": "ab"[place % 2]},
            installed_models=(model("llama", status="ready"),) * dice.choice((0, 1, 1)),
            max_concurrent_jobs=dice.choice((1, 2, 4, 4)),
        )

    def heartbeat(self, node_id: str) -> None:
        dice, record = self.dice, self.registry.node(node_id)
        figures = tuple(
            GpuFigures(
                uuid=uuid,
                processes=dice.choice((0, 0, 0, 0, 1)),
                memory_used_mb=dice.choice((0, 100, 200, 15_000)),
                health=dice.choice(("ok",) * 19 + ("failed",)),
            )
            for uuid in record.gpus
        )
        known = (*record.claims, *(one.claim.job_id for one in record.held.values()))
        jobs = tuple(job for job in dict.fromkeys(known) if dice.random() < 1 / 2)
        usage = ResourceUsage(
            cpu_percent=dice.choice((5.0, 5.0, 5.0, 99.0)),
            mem_percent=10.0,
            gpu_percent=dice.choice((5.0, 5.0, 5.0, 99.0)),
        )
        self.registry.heartbeat(
            record.connection or 0,
            node_id,
            gpus=figures,
            resource_usage=usage,
            probe_age_seconds=0.0,
            running_jobs=dice.choice((jobs, jobs, jobs, (*jobs, "another"))),
        )

    def claim(self, job: str) -> None:
        waits = self.dice.choice((0.0, 20.0, 60.0, 60.0))
        event = self.registry.claim_request(
            job, **_demands(job), wait_seconds=waits, priority=self.dice.choice((0, 0, 1))
        )
        self.asked.append(event.ref)
        self.registry.do(event)

    def end_claim(self) -> None:
        fleet = self.registry.fleet
        ended = sorted(
            {(one.job_id, one.claim_id) for one in (*fleet.claims(), *(h.claim for h in fleet.held()))}
        )
        if ended:
            self.registry.release(*self.dice.choice(ended))

    def node_request(self, node_id: str) -> Event:
        dice, record = self.dice, self.registry.node(node_id)
        uuid = dice.choice([*record.gpus, "GPU-parent"])
        ref, on = self.registry.ref(), dice.random() < 1 / 3
        if on:
            return dice.choice(
                (
                    DrainRequested(ref, node_id, 5.0, ""),
                    CordonRequested(ref, node_id, "broken"),
                    GpuCordonRequested(ref, node_id, uuid, "broken"),
                    ConnectionLost(record.connection or 0),
                    RemovalRequested(ref, node_id),
                )
            )
        return dice.choice(
            (
                ResumeRequested(ref, node_id),
                CordonRequested(ref, node_id, None),
                GpuCordonRequested(ref, node_id, uuid, None),
            )
        )


def _demands(job: str) -> dict[str, Any]:
    """Each job has demands of its own, the same at each request."""
    dice = Random(job)  # noqa: S311 - the same for the same job
    memory = dice.choice((None, None, 10_000, 24_000, 24_400, 30_000, 39_900, 40_800))
    return {
        "gpu_count": dice.choice((None, 1, 1, 2, 3)),
        "gpu_sharing": "memory" if memory and dice.random() < 2 / 3 else None,
        "min_gpu_memory_mb": memory,
        "gpu_name": dice.choice((None, None, None, "H100")),
        "labels": dice.choice(({}, {}, {}, {"zone": "a"}, {"zone": ("a", "b")})),
        "required_models": dice.choice(((), (), ("llama",))),
        "excluded_nodes": dice.choice(((), (), ("node-5",))),
        "nodes": dice.choice((1, 1, 1, 1, 2)),
        "ttl_seconds": dice.choice((10.0, 30.0, 60.0)),
    }


def try_all(queue: ClaimQueue) -> Iterator[Waiting]:
    """Try every job on every node, in order, and again from the first after each that gets a claim."""
    granted = True
    while granted:
        granted = False
        for waiting in queue.in_order():
            if waiting.requests:
                yield waiting
                if queue.of(waiting.job.job_id) is not waiting:
                    granted = True
                    break
    queue._dispatch.take_freed()


@pytest.mark.parametrize("seed", range(10))
def test_the_queue_grants_what_a_scan_of_all_nodes_would_grant(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(seed)
    indexed = [world.step() for _ in range(STEPS)]
    assert world.granted_later
    monkeypatch.setattr(ClaimQueue, "to_try", try_all)
    scanned = World(seed)
    for number, found in enumerate(indexed):
        assert found == scanned.step(), f"step {number}"
