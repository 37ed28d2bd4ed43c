"""Dispatch checked against a scan of all nodes, in any order of events."""

from random import Random

from gpu_agent.registry.dispatch.candidate import score
from gpu_agent.registry.dispatch.dispatch import AFFINITY_SECONDS, Choice, Dispatch
from gpu_agent.registry.dispatch.exclusions import Explanation, NoAvailableNode
from gpu_agent.registry.dispatch.gpu_allocation import availability, gpu_set
from gpu_agent.registry.job import Claim, ClaimEnd, Grant, Job, Sharing, sharing_of
from gpu_agent.registry.node import GpuCordon
from gpu_agent.registry.settings import Thresholds
from tests.registry.dispatch.random_fleet import (
    JOB_IDS,
    NODE_IDS,
    random_fleet,
    random_job,
    random_node,
    reported_jobs,
)

TTL = Thresholds().claim_ttl_seconds


class ModelCheck:
    """A fleet under heartbeats, claims, ends and losses in any order; each answer is compared with a scan."""

    def __init__(self, dice: Random) -> None:
        self.dice = dice
        self.now = 0.0
        self.warm: dict[str, tuple[str, float]] = {}
        self.records = {record.node_id: record for record in random_fleet(dice)}
        self.dispatch = Dispatch(Thresholds(), dice.random)
        self.claims = 0
        for record in self.records.values():
            self.dispatch.update(record)

    def step(self) -> None:
        """Let something happen."""
        happenings = (
            self.node_changes,
            self.gpus_report,
            self.jobs_are_reported,
            self.gpu_is_cordoned,
            self.job_ends,
            self.job_is_renewed,
            self.node_is_lost,
            self.lost_claim_is_attached,
            self.held_gpus_are_freed,
        )
        self.dice.choice((*happenings, self.time_passes, *[self.job_is_placed] * 8))()
        self.check()

    def check(self) -> None:
        """Check what must hold at all times."""
        for record in self.records.values():
            for job_id, claim in record.claims.items():
                assert self.dispatch.claim_of(job_id) is claim
                assert claim.on(record.node_id) is not None
        for claim in self.dispatch.claims():
            assert len({grant.node_id for grant in claim.grants}) == claim.job.nodes
            for grant in claim.grants:
                assert self.records[grant.node_id].claims[claim.job_id] is claim
        self.no_gpu_is_in_two_exclusive_claims()
        for candidate in self.dispatch._index.candidates.values():
            known = candidate.usable, candidate.unheld, candidate.free
            assert known == tuple(gpu_set(gpus) for gpus in availability(candidate))

    def no_gpu_is_in_two_exclusive_claims(self) -> None:
        holders: dict[str, tuple[str, bool]] = {}
        grants = [(claim, grant.gpu_uuids) for claim in self.dispatch.claims() for grant in claim.grants]
        held = [(one.claim, one.gpu_uuids) for one in self.dispatch.held()]
        for claim, uuids in (*grants, *held):
            exclusive = sharing_of(claim.job) is Sharing.EXCLUSIVE
            for uuid in uuids:
                other, other_exclusive = holders.setdefault(uuid, (claim.claim_id, exclusive))
                assert other == claim.claim_id or not (exclusive or other_exclusive)

    def node_changes(self) -> None:
        record = self.records[self.dice.choice(NODE_IDS)]
        changed = random_node(self.dice, record.node_id)
        for name in (
            "registered_at",
            "status",
            "connection",
            "desired",
            "gpus",
            "liveness",
            "declared",
            "jobs",
        ):
            setattr(record, name, getattr(changed, name))
        record.liveness.last_heartbeat_at = self.now
        self.dispatch.update(record)

    def gpus_report(self) -> None:
        record = self.records[self.dice.choice(NODE_IDS)]
        for state in record.gpus.values():
            state.memory_used_mb = self.dice.randrange(25_000)
            state.set_health(*self.dice.choice((("ok", ()), ("lost", ()), ("degraded", ("fabric_failed",)))))
            state.processes = self.dice.choice((None, 0, 0, 1))
        record.liveness.last_heartbeat_at = self.now
        self.dispatch.update(record)

    def jobs_are_reported(self) -> None:
        record = self.records[self.dice.choice(NODE_IDS)]
        record.jobs = reported_jobs(self.dice)
        self.dispatch.update(record)

    def gpu_is_cordoned(self) -> None:
        record = self.records[self.dice.choice(NODE_IDS)]
        for uuid in record.gpus:
            record.desired.gpu_cordons.pop(uuid, None)
            if self.dice.random() < 1 / 4:
                record.desired.gpu_cordons[uuid] = GpuCordon(reason="ECC errors")
        self.dispatch.update_cordons(record)

    def job_is_placed(self) -> None:
        wanted = random_job(self.dice)
        if self.dispatch.claim_of(wanted.job_id) is not None:
            return
        explained = self.dispatch.explain(wanted, self.now)
        choice = self.dispatch.select(wanted, self.now)
        if len(explained.eligible) < wanted.nodes:
            assert isinstance(choice, NoAvailableNode)
            assert choice.counts == explained.counts
        else:
            assert isinstance(choice, Choice)
            assert choice.score == self.best_score(wanted, explained)
            self.are_grants_of(wanted, choice.grants, explained)
        self.claim(wanted, choice, explained)

    def claim(self, wanted: Job, choice: Choice | NoAvailableNode, explained: Explanation) -> None:
        """Claim what was selected; what the job's own earlier claims hold is no obstacle to it."""
        own = {one.node_id for one in self.dispatch.held_of(wanted.job_id)}
        self.claims += 1
        placed = self.dispatch.claim(wanted, self.now, claim_id=f"claim-{self.claims}", owner=None)
        if isinstance(placed, NoAvailableNode):
            assert isinstance(choice, NoAvailableNode)
            assert placed.counts == choice.counts
            return
        assert placed is not None
        claim, ended = placed
        assert own or isinstance(choice, Choice)
        assert {one.node_id for one in ended} == own & {grant.node_id for grant in claim.grants}
        if not own:
            self.are_grants_of(wanted, claim.grants, explained)
        self.remember(claim, self.now)

    def are_grants_of(self, wanted: Job, grants: tuple[Grant, ...], explained: Explanation) -> None:
        """Check that these are different eligible nodes, with as many different GPUs as the job needs."""
        node_ids = [grant.node_id for grant in grants]
        assert len(set(node_ids)) == wanted.nodes == len(node_ids)
        assert set(node_ids) <= set(explained.eligible)
        uuids = [uuid for grant in grants for uuid in grant.gpu_uuids]
        number = 0 if sharing_of(wanted) is None else wanted.gpu_count or 1
        assert len(set(uuids)) == number * wanted.nodes == len(uuids)
        for grant in grants:
            record = self.records[grant.node_id]
            states = [record.gpus[uuid] for uuid in grant.gpu_uuids]
            assert len({state.kind.is_mig for state in states}) <= 1
            assert all(state.usable for state in states)
            assert len(uuids) == 1 or not any(state.kind.is_single for state in states)
            assert record.desired.gpu_cordons.keys().isdisjoint(grant.gpu_uuids)

    def job_ends(self) -> None:
        job_id = self.dice.choice(JOB_IDS)
        claim = self.dispatch.claim_of(job_id)
        ended = self.dispatch.end(job_id, ClaimEnd.RELEASED, self.now)
        assert ended == (None if claim is None else (claim, []))
        assert self.dispatch.claim_of(job_id) is None

    def job_is_renewed(self) -> None:
        claim = self.dispatch.renew(self.dice.choice(JOB_IDS), self.now)
        if claim is not None:
            assert claim.expires_at == self.now + TTL
            self.remember(claim, self.now)

    def node_is_lost(self) -> None:
        record = self.records[self.dice.choice(NODE_IDS)]
        for claim in self.dispatch.claims_on(record.node_id):
            ended = self.dispatch.end(claim.job_id, ClaimEnd.LOST, self.now)
            assert ended is not None
            assert [one.node_id for one in ended[1]] == [grant.node_id for grant in claim.grants]
        assert not record.claims

    def lost_claim_is_attached(self) -> None:
        for held in self.dispatch.held():
            grant = held.claim.on(held.node_id)
            whole = len(held.claim.grants) == 1 and grant is not None and grant.gpu_uuids == held.gpu_uuids
            if whole and self.dispatch.claim_of(held.claim.job_id) is None:
                assert self.dispatch.attach(held.claim) is held.claim
                assert held not in self.dispatch.held()
                self.remember(held.claim, held.claim.granted_at)
                return

    def held_gpus_are_freed(self) -> None:
        for held in self.dispatch.held():
            left = tuple(uuid for uuid in held.gpu_uuids if self.dice.random() < 1 / 2)
            still = self.dispatch.shrink_held(held, left, self.now)
            assert (() if still is None else still.gpu_uuids) == left
            return

    def time_passes(self) -> None:
        self.now += self.dice.choice((1.0, 30.0, 61.0, 601.0))
        for claim in self.dispatch.due(self.now):
            assert claim.expires_at <= self.now
            self.dispatch.end(claim.job_id, ClaimEnd.EXPIRED, self.now)
        assert self.dispatch.next_expiry is None or self.dispatch.next_expiry > self.now

    def best_score(self, wanted: Job, explained: Explanation) -> int:
        """Rate the eligible nodes without the index: the one most in use for whole GPUs, then by score."""
        packs = sharing_of(wanted) is Sharing.EXCLUSIVE
        _, best = max(
            (len(self.taken(node_id)) if packs else 0, score(record, record.in_flight_jobs, Thresholds()))
            for node_id in explained.eligible
            for record in (self.records[node_id],)
        )
        held_by, held_at = self.warm.get(wanted.affinity_key or "", ("", 0.0))
        if held_by in explained.eligible and self.now - held_at <= AFFINITY_SECONDS:
            record, bonus = self.records[held_by], Thresholds().affinity_bonus
            near = score(record, record.in_flight_jobs, Thresholds()) + bonus
            return max(near, best)
        return best

    def taken(self, node_id: str) -> set[str]:
        """Return the GPUs of a node in exclusive claims, and those that ended ones hold."""
        record = self.records[node_id]
        claims = [(one, grant.gpu_uuids) for one in record.claims.values() if (grant := one.on(node_id))]
        held = [(one.claim, one.gpu_uuids) for one in record.held.values()]
        return {
            uuid
            for claim, uuids in (*claims, *held)
            if sharing_of(claim.job) is Sharing.EXCLUSIVE
            for uuid in uuids
        }

    def remember(self, claim: Claim, at: float) -> None:
        if claim.job.affinity_key is not None:
            self.warm[claim.job.affinity_key] = (claim.grants[0].node_id, at)
