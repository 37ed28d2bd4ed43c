"""Claims against telemetry: idle claims, GPUs used without a claim, GPUs that two nodes declare (§5.5).

Runs with every heartbeat of a node that holds GPU claims, so it reads the figures without making objects of
them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from gpu_agent.registry.actions import Level, Step
from gpu_agent.registry.claim_history import ClaimHistory, ClaimRecord, GpuUse
from gpu_agent.registry.gpus import Gpus
from gpu_agent.registry.job import Claim
from gpu_agent.registry.node import NodeRecord
from gpu_agent.registry.quoting import clip_sentence
from gpu_agent.registry.settings import Thresholds

_NODES_NAMED = 5
"""So many of the other nodes that declare a GPU an event names."""
IDLE_PERCENT = 5.0
"""A GPU that is busy for no more than this counts as idle."""

OLDEST_FIGURES_SECONDS = 60.0
"""Older figures are unknown."""


@dataclass(slots=True, eq=False)
class ClaimWatch:
    """What a claim's GPUs on one node have done since it began."""

    record: ClaimRecord
    node_id: str
    uuids: tuple[str, ...]
    uses: tuple[GpuUse, ...]
    gpus: Gpus | None = None
    """The list in which `places` are places."""
    places: tuple[int | None, ...] = ()
    idle_since: float | None = None
    """Since when all of them are idle, by known figures."""
    seen_at: float = inf
    """When figures of them came last."""


class ClaimTelemetry:
    """Watches the GPUs of claims."""

    def __init__(self, thresholds: Thresholds, history: ClaimHistory, changed_nodes: set[str]) -> None:
        """Add to `changed_nodes` the nodes on which a claim becomes idle, or is used again."""
        self._changed_nodes = changed_nodes
        self._idle_seconds = thresholds.claim_idle_seconds
        self._history = history
        self._of_node: dict[str, list[ClaimWatch]] = {}
        self._of_claim: dict[str, list[ClaimWatch]] = {}

    def begin(self, claim: Claim) -> None:
        """Watch a claim's GPUs from now on."""
        self.end(claim)
        record = self._history.record_of(claim)
        for grant in claim.grants:
            if grant.gpu_uuids:
                uses = tuple(
                    record.use.setdefault((grant.node_id, uuid), GpuUse()) for uuid in grant.gpu_uuids
                )
                watch = ClaimWatch(record, grant.node_id, grant.gpu_uuids, uses)
                self._of_node.setdefault(grant.node_id, []).append(watch)
                self._of_claim.setdefault(claim.claim_id, []).append(watch)

    def end(self, claim: Claim) -> None:
        """Watch a claim no more."""
        for watch in self._of_claim.pop(claim.claim_id, ()):
            watches = self._of_node[watch.node_id]
            watches.remove(watch)
            if not watches:
                del self._of_node[watch.node_id]

    def observe(self, record: NodeRecord, now: float) -> list[ClaimWatch] | None:
        """Take in a heartbeat's figures; returns the claims that have just become idle for too long."""
        watches = self._of_node.get(record.node_id)
        if watches is None:
            return None
        age = record.liveness.probe_age_seconds
        known = age is None or age <= OLDEST_FIGURES_SECONDS
        percents = record.gpus.utilizations if known else ()
        figures_at = record.liveness.figures_at
        oldest = now - max(OLDEST_FIGURES_SECONDS, record.schedule.timeout_seconds)
        for one in watches:
            if one.seen_at < oldest:  # nothing was known meanwhile
                one.idle_since = None
            one.seen_at = now
        idle = [
            one
            for one in watches
            if figures_at >= one.record.claim.granted_at  # older ones show what was there before the claim
            and self._is_newly_idle(one, record.gpus, percents, now=now)
        ]
        return idle or None

    def log(self, record: NodeRecord, step: Step, *, idle: Sequence[ClaimWatch]) -> None:
        """Log what a heartbeat shows."""
        self._log_idle(idle, step)
        self._log_unclaimed_use(record, step)
        self._log_duplicates(record, step)

    def _log_idle(self, idle: Sequence[ClaimWatch], step: Step) -> None:
        """Log claims that do not use their GPUs."""
        for watch in idle:
            claim, seconds = watch.record.claim, step.now - (watch.idle_since or step.now)
            since = [one.idle_since for one in self._of_claim[claim.claim_id] if one.idle_since is not None]
            watch.record.idle_since = max(since, default=step.now)
            self._changed_nodes.update(grant.node_id for grant in claim.grants)
            fields = {
                "job_id": claim.job_id,
                "node_id": watch.node_id,
                "claim_id": claim.claim_id,
                "idle_seconds": round(seconds),
            }
            step.log("claim_idle", fields, Level.WARNING)
            self._history.note(claim, f"its GPUs were idle for {seconds:.0f} s", step.now)

    def _log_unclaimed_use(self, record: NodeRecord, step: Step) -> None:
        """Log GPUs that show processes of no claim over two heartbeats, once until that ends."""
        seen = record.unclaimed_use
        recently = bool(record.foreign_jobs) or step.now - record.last_job_at < self._idle_seconds
        again = frozenset[str]() if recently else seen & record.unclaimed_before
        for uuid in sorted(again - record.unclaimed_logged):
            gpu = record.gpus.get(uuid)
            processes = None if gpu is None else gpu.processes
            fields = {"node_id": record.node_id, "gpu_uuid": clip_sentence(uuid), "processes": processes}
            step.log("gpu_used_without_claim", fields, Level.WARNING)
        record.unclaimed_logged = (record.unclaimed_logged | again) & seen
        record.unclaimed_before = seen

    def _log_duplicates(self, record: NodeRecord, step: Step) -> None:
        """Log GPUs that another node declares too, once until that ends."""
        for uuid in sorted(record.duplicate_gpus - record.duplicates_logged):
            fields = {
                "node_id": record.node_id,
                "gpu_uuid": clip_sentence(uuid),
                "other_nodes": ", ".join(sorted(record.duplicate_nodes)[:_NODES_NAMED]),
            }
            step.log("gpu_uuid_duplicate", fields, Level.WARNING)
        record.duplicates_logged = record.duplicate_gpus

    def _is_newly_idle(
        self, watch: ClaimWatch, gpus: Gpus, percents: Sequence[float | None], *, now: float
    ) -> bool:
        if watch.gpus is not gpus:
            watch.gpus, watch.places = gpus, gpus.places_of(watch.uuids)
        idle = True
        for place, use in zip(watch.places, watch.uses, strict=True):
            percent = percents[place] if place is not None and percents else None
            if percent is None:
                idle = False
                continue
            use.readings += 1
            use.total_percent += percent
            use.highest_percent = max(use.highest_percent, percent)
            if percent > IDLE_PERCENT:
                idle = False
                if watch.record.idle_since is not None:
                    watch.record.idle_since = None
                    self._changed_nodes.update(grant.node_id for grant in watch.record.claim.grants)
        if not idle:
            watch.idle_since = None
            return False
        if watch.idle_since is None:
            watch.idle_since = now
        if watch.record.idle_since is not None or now - watch.idle_since < self._idle_seconds:
            return False
        others = self._of_claim[watch.record.claim.claim_id]
        return all(
            one.idle_since is not None and now - one.idle_since >= self._idle_seconds for one in others
        )
