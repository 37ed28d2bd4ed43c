"""After any events: dispatch counts what claims and held GPUs imply, and each request has one answer."""

from collections import Counter
from random import Random
from typing import Any

import pytest

from gpu_agent.registry.actions import Answer, DocumentKind
from gpu_agent.registry.dispatch.candidate import Candidate
from gpu_agent.registry.dispatch.gpu_allocation import availability, gpu_set
from gpu_agent.registry.events import (
    ClaimWaitEnded,
    ConnectionLost,
    DrainRequested,
    Event,
    GpuCordonRequested,
    RemovalRequested,
    ResumeRequested,
)
from gpu_agent.registry.job import Claim, GpuDemand, HeldGrant, Sharing, gpu_demand, sharing_of, size_of
from gpu_agent.wire.codes import NodeStatus
from gpu_agent.wire.messages import GpuDeclaration, GpuFigures, Hardware
from tests.registry.harness import Registry, of, unregistration

SHARED = GpuDeclaration(uuid="GPU-shared", name="H100", memory_gb=80)
PARENT = GpuDeclaration(uuid="GPU-parent", name="H100", memory_gb=80)
DEVICES = tuple(
    GpuDeclaration(uuid=f"MIG-{place}", name="H100 MIG 3g.40gb", memory_gb=40, parent_uuid="GPU-parent")
    for place in range(2)
)
NAMELESS = GpuDeclaration(name="L4", memory_gb=24)
DEMANDS = tuple(
    GpuDemand(sharing, number, "", memory, (0, 0))
    for sharing, memory in ((Sharing.EXCLUSIVE, 0), (Sharing.MEMORY, 30_000), (None, 0))
    for number in (1, 2)
)

THRESHOLDS: dict[str, Any] = {
    "claim_ttl_seconds": 20.0,
    "queue_reserve_after_seconds": 5.0,
    "flap_limit": 1000,
}


class World:
    """Four nodes whose GPUs change and coincide, and six jobs."""

    def __init__(self, seed: int) -> None:
        self.dice = Random(seed)  # noqa: S311 - the same events for the same seed
        self.registry = Registry(auth_off=True, **THRESHOLDS)
        self.connection = 0
        self.asked: list[int] = []
        self.closed: set[int] = set()
        self.answered: Counter[int] = Counter()

    def own_gpus(self, place: int) -> tuple[GpuDeclaration, ...]:
        own = tuple(
            GpuDeclaration(uuid=f"GPU-{place}-{number}", name="A100", memory_gb=40) for number in (0, 1)
        )
        return self.dice.choice(
            (
                own,
                own,
                (*own, SHARED),
                (*own[:1], PARENT),
                (PARENT, *DEVICES),
                DEVICES[:1],
                (NAMELESS, NAMELESS),
                (NAMELESS,),
            )
        )

    def step(self) -> None:
        dice, registry = self.dice, self.registry
        place, job = dice.randint(1, 4), f"job-{dice.randint(1, 6)}"
        node_id = f"node-{place}"
        record = registry.fleet.node(node_id)
        match dice.randint(0, 17):
            case 0 | 1 if record is None or record.connection is None or dice.random() < 1 / 10:
                self.connection += 1
                machine = Hardware(cpu_cores=8, memory_gb=64, gpus=self.own_gpus(place))
                jobs = (job,) if dice.random() < 1 / 3 else None
                registry.arrive(
                    None, self.connection, node_id, hardware=machine, running_jobs=jobs, max_concurrent_jobs=3
                )
            case 2 if record is not None and record.connection is not None:
                registry.do(ConnectionLost(record.connection))
            case 3 if record is not None and record.connection is not None and dice.random() < 1 / 4:
                registry.do(unregistration(record.connection, node_id=node_id))
            case 4 if dice.random() < 1 / 3:
                registry.do(self.node_request(node_id))
            case 5 | 6 | 7 | 8:
                self.claim(job)
            case 9:
                registry.renew(job, ttl_seconds=dice.choice((None, 10.0)))
            case 10:
                held = registry.fleet.held_of(job)
                registry.release(job, held[0].claim.claim_id if held and dice.random() < 1 / 2 else None)
            case 11 if self.asked:
                ref = dice.choice(self.asked)
                self.closed.add(ref)
                registry.do(ClaimWaitEnded(ref))
            case 12 if dice.random() < 1 / 4:
                registry.let_store_fail()
                registry.pass_time(1.0)
                registry.recover(outage_seconds=dice.choice((1.0, 9.0)))
            case _:
                registry.pass_time(dice.choice((0.0, 1.0, 2.0, 5.0)))
                self.heartbeats()
        self.check()

    def node_request(self, node_id: str) -> Event:
        record = self.registry.fleet.node(node_id)
        uuid = self.dice.choice([*(record.gpus if record else ()), "GPU-parent"])
        ref = self.registry.ref()
        return self.dice.choice(
            (
                RemovalRequested(ref, node_id),
                DrainRequested(ref, node_id, 5.0, ""),
                ResumeRequested(ref, node_id),
                GpuCordonRequested(ref, node_id, uuid, self.dice.choice((None, None, "broken"))),
            )
        )

    def claim(self, job: str) -> None:
        memory = self.dice.choice((None, None, 10_000))
        count = self.dice.choice((None, 1, 1, 2))
        sharing = "memory" if memory and self.dice.random() < 1 / 2 else None
        event = self.registry.claim_request(
            job,
            gpu_count=count,
            gpu_sharing=sharing,
            min_gpu_memory_mb=memory,
            excluded_nodes=("node-9",) * self.dice.randint(0, 1),
            nodes=self.dice.choice((1, 1, 2)),
            ttl_seconds=self.dice.choice((None, 10.0)),
            wait_seconds=self.dice.choice((0.0, 0.0, 10.0, 60.0)),
            priority=self.dice.choice((0, 0, 1)),
        )
        self.asked.append(event.ref)
        self.registry.do(event)

    def heartbeats(self) -> None:
        for record in self.registry.fleet.nodes():
            if record.connection is not None and self.dice.random() < 3 / 4:
                figures = tuple(
                    GpuFigures(
                        uuid=uuid,
                        processes=self.dice.choice((None, 0, 0, 1)),
                        memory_used_mb=self.dice.choice((0, 5000)),
                        health=self.dice.choice(("ok",) * 39 + ("failed",)),
                    )
                    for uuid in record.gpus
                )
                known = (*record.claims, *(one.claim.job_id for one in record.held.values()))
                jobs = tuple(job for job in dict.fromkeys(known) if self.dice.random() < 3 / 4)
                parts: dict[str, object] = {"hardware": None, "gpus": figures, "probe_age_seconds": 0.0}
                parts["running_jobs"] = self.dice.choice((None, jobs, jobs, (*jobs, "job-1")))
                if self.dice.random() < 1 / 20:
                    gpus = self.own_gpus(int(record.node_id[-1]))
                    parts["hardware"] = Hardware(cpu_cores=8, memory_gb=64, gpus=gpus)
                self.registry.heartbeat(
                    record.connection, record.node_id, **{k: v for k, v in parts.items() if v is not None}
                )

    def restart(self) -> None:
        """Begin again from what is stored."""
        later = Registry(auth_off=True, **THRESHOLDS)
        later.now = self.registry.now
        later.restore(self.registry.stored_documents())
        before = self.registry.fleet
        assert {one.claim_id for one in later.fleet.claims()} == {one.claim_id for one in before.claims()}
        assert facts(later.fleet.held()) == facts(before.held())

    def check(self) -> None:
        fleet = self.registry.fleet
        claims, held = fleet.claims(), fleet.held()
        for record in fleet.nodes():
            self.check_node(record.node_id, claims, held)
        self.check_gpus(claims, held)
        self.check_answers()
        stored = self.registry.documents
        assert {key for kind, key in stored if kind is DocumentKind.CLAIM} == {one.job_id for one in claims}
        assert {key for kind, key in stored if kind is DocumentKind.HELD} == {one.key for one in held}
        queue = fleet._claims.queue
        assert queue._earliest in (None, min(queue._deadlines(), default=None))
        assert queue._bytes == sum(size_of(one.job) for one in fleet.queue())
        history = fleet.claim_history
        assert history._ended_bytes == sum(one.size_bytes for one in history._ended.values())
        assert {one.claim.claim_id for one in history.current()} == {one.claim_id for one in claims}

    def check_node(self, node_id: str, claims: list[Claim], held: list[HeldGrant]) -> None:
        index = self.registry.fleet._dispatch._index
        candidate = index.candidates[node_id]
        grants = [(one, grant.gpu_uuids) for one in claims if (grant := one.on(node_id)) is not None]
        holds = [(one.claim, one.gpu_uuids) for one in held if one.node_id == node_id]
        assert {one.claim_id for one, _ in grants} == {
            one.claim_id for one in candidate.record.claims.values()
        }
        assert {one.claim_id for one, _ in holds} == set(candidate.record.held)
        exclusive = {
            uuid: claim.claim_id
            for claim, uuids in grants + holds
            if sharing_of(claim.job) is Sharing.EXCLUSIVE
            for uuid in uuids
        }
        assert {uuid: one.claim_id for uuid, one in candidate.exclusive.items()} == exclusive
        shared, needs = Counter[str](), Counter[str]()
        for claim, uuids in grants + holds:
            if sharing_of(claim.job) is Sharing.MEMORY:
                shared.update(uuids)
                needs.update(dict.fromkeys(uuids, gpu_demand(claim.job).memory_mb))
        assert {uuid: (one.claims, one.needs_mb) for uuid, one in candidate.reserved.items()} == {
            uuid: (shared[uuid], needs[uuid]) for uuid in shared
        }
        assert candidate.slot_only == sum(sharing_of(one.job) is None for one, _ in grants)
        if candidate.record.status is not NodeStatus.OFFLINE:  # else it is updated once it comes back
            self.check_gpu_sets(candidate)
        assert (candidate.reservation is not None) == (candidate.position in index._reserved)
        waiting = {one.job.job_id for one in self.registry.fleet.queue()}
        assert candidate.reservation is None or candidate.reservation.job_id in waiting

    def check_gpu_sets(self, candidate: Candidate) -> None:
        index, sets = self.registry.fleet._dispatch._index, tuple(map(gpu_set, availability(candidate)))
        assert (candidate.usable, candidate.unheld, candidate.free) == sets
        for counts, gpus in zip((index._usable, index._unheld, index._free), sets, strict=True):
            for demand in DEMANDS:
                assert counts.holders(demand) >> candidate.position & 1 == (demand.missing(gpus) == 0)

    def check_gpus(self, claims: list[Claim], held: list[HeldGrant]) -> None:
        """No GPU is in two exclusive claims, nor in an exclusive and a shared one, on whatever node."""
        holders: dict[str, set[tuple[str, bool]]] = {}
        both = [(one, uuid) for one in claims for grant in one.grants for uuid in grant.gpu_uuids]
        both += [(one.claim, uuid) for one in held for uuid in one.gpu_uuids]
        for claim, uuid in both:
            if not uuid.startswith("#"):
                exclusive = sharing_of(claim.job) is Sharing.EXCLUSIVE
                holders.setdefault(uuid, set()).add((claim.claim_id, exclusive))
        for device in DEVICES:
            over = holders.get(str(device.uuid), set()), holders.get("GPU-parent", set())
            assert not all(over) or not any(exclusive for _, exclusive in over[0] | over[1])
        for those in holders.values():
            assert len(those) == 1 or not any(exclusive for _, exclusive in those)

    def check_answers(self) -> None:
        answers = Counter(one.ref for one in of(Answer, self.registry.done))
        waiting = {ref for one in self.registry.fleet.queue() for ref in one.requests}
        for ref in self.asked:
            if ref in self.closed:
                assert answers[ref] <= 1
            else:
                assert answers[ref] == (ref not in waiting)


def facts(held: list[HeldGrant]) -> set[tuple[str, str, tuple[str, ...]]]:
    return {(one.claim.claim_id, one.node_id, one.gpu_uuids) for one in held}


@pytest.mark.parametrize("seed", range(12))
def test_what_dispatch_counts_follows_from_claims_whatever_happens(seed: int) -> None:
    world = World(seed)
    for _ in range(150):
        world.step()
    world.restart()
