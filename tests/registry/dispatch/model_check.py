"""Dispatch checked against a scan of all nodes, in any order of events."""

from random import Random

from gpu_agent.registry.dispatch.candidate import score
from gpu_agent.registry.dispatch.dispatch import AFFINITY_SECONDS, Choice, Dispatch
from gpu_agent.registry.job import Claim, Job
from gpu_agent.registry.settings import Thresholds
from tests.registry.dispatch.random_fleet import JOB_IDS, NODE_IDS, random_fleet, random_job, random_node

TTL = Thresholds().claim_ttl_seconds


class ModelCheck:
    """A fleet under heartbeats, claims, ends and losses in any order; each answer is compared with a scan."""

    def __init__(self, dice: Random) -> None:
        self.dice = dice
        self.now = 0.0
        self.warm: dict[str, tuple[str, float]] = {}
        self.records = {record.node_id: record for record in random_fleet(dice)}
        self.dispatch = Dispatch(Thresholds(), dice.random)
        for record in self.records.values():
            self.dispatch.update(record)

    def step(self) -> None:
        """Let something happen."""
        happenings = (self.node_changes, self.gpus_report, self.job_ends, self.job_is_kept, self.node_is_lost)
        self.dice.choice((*happenings, self.time_passes, *[self.job_is_placed] * 6))()
        for record in self.records.values():
            for job_id, claim in record.claims.items():
                assert self.dispatch.claim_of(job_id) is claim
                assert claim.node_id == record.node_id

    def node_changes(self) -> None:
        record = self.records[self.dice.choice(NODE_IDS)]
        changed = random_node(self.dice, record.node_id)
        for name in ("status", "connection", "desired", "gpus", "liveness", "declared", "jobs"):
            setattr(record, name, getattr(changed, name))
        self.dispatch.update(record)

    def gpus_report(self) -> None:
        record = self.records[self.dice.choice(NODE_IDS)]
        for state in record.gpus.values():
            state.memory_used_mb = self.dice.randrange(25_000)
            state.health = self.dice.choice(("ok", "lost"))
        self.dispatch.update(record)

    def job_is_placed(self) -> None:
        wanted = random_job(self.dice)
        held = self.dispatch.claim_of(wanted.job_id)
        explained = self.dispatch.explain(wanted, self.now)
        choice = self.dispatch.select(wanted, self.now)
        best = max((self.rating(node_id, wanted) for node_id in explained.eligible), default=None)
        claim = self.dispatch.claim(wanted, self.now)
        if held is not None:
            assert claim is held
        elif isinstance(claim, Claim):
            assert isinstance(choice, Choice)
            assert choice.score == best
            assert {choice.node_id, claim.node_id} <= set(explained.eligible)
            assert len(claim.gpu_uuids) == wanted.gpu_count
            self.remember(claim, self.now)
        else:
            assert explained.eligible == ()
            assert claim.counts == explained.counts

    def job_ends(self) -> None:
        job_id = self.dice.choice(JOB_IDS)
        assert self.dispatch.claim_of(job_id) is self.dispatch.release(job_id)
        assert self.dispatch.claim_of(job_id) is None

    def job_is_kept(self) -> None:
        claim = self.dispatch.renew(self.dice.choice(JOB_IDS), self.now)
        if claim is not None:
            assert claim.expires_at == self.now + TTL
            self.remember(claim, self.now)

    def node_is_lost(self) -> None:
        record = self.records[self.dice.choice(NODE_IDS)]
        lost = self.dispatch.lose(record.node_id)
        assert not record.claims
        if self.dice.random() < 1 / 2:
            assert [self.dispatch.attach(claim) for claim in lost] == lost
            for claim in lost:
                self.remember(claim, claim.granted_at)

    def time_passes(self) -> None:
        self.now += self.dice.choice((1.0, 30.0, 61.0, 601.0))
        assert all(claim.expires_at <= self.now for claim in self.dispatch.expire(self.now))
        assert self.dispatch.next_expiry is None or self.dispatch.next_expiry > self.now

    def rating(self, node_id: str, wanted: Job) -> int:
        """Rate an eligible node without the index."""
        record = self.records[node_id]
        held_by, held_at = self.warm.get(wanted.affinity_key or "", ("", 0.0))
        bonus = (
            Thresholds().affinity_bonus
            if node_id == held_by and self.now - held_at <= AFFINITY_SECONDS
            else 0
        )
        return score(record, record.in_flight_jobs, Thresholds()) + bonus

    def remember(self, claim: Claim, at: float) -> None:
        if claim.affinity_key is not None:
            self.warm[claim.affinity_key] = (claim.node_id, at)
