"""Makes the documents of `wire.api` from the fleet's records, claims and refusals, in wall time.

Derives nothing that the fleet does not know. The fleet decides by monotonic seconds; wall time is computed
from such a moment when it is asked for, so that a step of the system's clock changes what is shown and never
a decision.
"""

import asyncio
import heapq
import json
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from typing import Any, TypeVar

from pydantic import TypeAdapter

from gpu_agent.probe.health.reasons import next_step
from gpu_agent.registry import health, lifecycle
from gpu_agent.registry.claim_history import ClaimHistory, ClaimRecord
from gpu_agent.registry.dispatch.dispatch import Choice
from gpu_agent.registry.dispatch.exclusions import (
    Eligible,
    Excluded,
    ExclusionWindow,
    Explanation,
    NoAvailableNode,
)
from gpu_agent.registry.fleet import Fleet
from gpu_agent.registry.fleet_totals import FleetTotals
from gpu_agent.registry.gpu_history import POINT_SECONDS, POINTS
from gpu_agent.registry.gpus import CHECK_FAILED, NOT_REPORTED, GpuState
from gpu_agent.registry.job import Claim, Grant, Sharing, sharing_of
from gpu_agent.registry.node import Drain, NodeRecord
from gpu_agent.registry.queue import Waiting, demand_key
from gpu_agent.registry.settings import Thresholds
from gpu_agent.registry.tokens import NodeTokens
from gpu_agent.wire import api
from gpu_agent.wire.codes import GpuStatus, NodeStatus, ReasonCode
from gpu_agent.wire.fleet_documents import (
    FleetFigures,
    GpuHistoryView,
    GpuModelCount,
    GpuPointView,
    NodeGpuHistory,
    ReasonCount,
)
from gpu_agent.wire.inventory import Health
from gpu_agent.wire.messages import InstalledModel
from gpu_agent.wire.service_discovery import EndpointView

NODES_IN_A_PIECE = 256
HISTORY_SECONDS = POINTS * POINT_SECONDS

T = TypeVar("T")

_NAMES = TypeAdapter(tuple[str, ...])
_ELIGIBLE = TypeAdapter(tuple[Eligible, ...])
_EXCLUDED = TypeAdapter(tuple[Excluded, ...])


@dataclass(frozen=True, slots=True)
class Clock:
    """Both clocks of this process."""

    monotonic: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time

    def wall_at(self, moment: float) -> float:
        """Return the Unix time of a monotonic moment, to the millisecond."""
        return round(self.wall() - (self.monotonic() - moment), 3)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFilter:
    """Conditions on a node, all of which must hold; one that is left out always holds."""

    statuses: frozenset[NodeStatus] = frozenset()
    """Any one of these."""
    reason: ReasonCode | None = None
    """Why it has its status."""
    model: str | None = None
    """A model that is installed, enabled and ready."""
    labels: Mapping[str, str | tuple[str, ...]] = field(default_factory=dict)
    """Each of these, with the value or one of the values."""
    gpu_name: str | None = None
    """Part of a GPU's name, in upper or lower case."""
    connected: bool | None = None
    text: str | None = None
    """Part of a hostname, an id, an address, a label's value, a GPU's name or a model, in any case."""

    def matches(self, record: NodeRecord) -> bool:
        """Return whether every condition holds for a node."""
        if self.statuses and record.status not in self.statuses:
            return False
        if self.reason is not None and record.reason_code is not self.reason:
            return False
        if self.connected is not None and record.connected is not self.connected:
            return False
        if self.model is not None and self.model not in record.declared.ready_models:
            return False
        if not all(_has_label(record, name, values) for name, values in self.labels.items()):
            return False
        if self.text is not None and not _mentions(record, self.text.lower()):
            return False
        return self.gpu_name is None or _has_gpu(record.gpus.names, self.gpu_name.lower())


ALL_NODES = NodeFilter()


@dataclass(frozen=True, slots=True)
class GpuFacts:
    """What the documents of a node's GPUs take from elsewhere than its record."""

    statuses: Sequence[GpuStatus]
    """Without the parents of MIG devices."""
    history: ClaimHistory
    """Of the claims."""


def node_summary(
    record: NodeRecord, clock: Clock, *, thresholds: Thresholds, gpus: GpuFacts, stored: bool
) -> api.NodeSummary:
    """Make a node's document for a list."""
    return api.NodeSummary(**_summary_fields(record, clock, thresholds=thresholds, gpus=gpus), stored=stored)


def endpoint_view(record: NodeRecord, endpoint: str, *, takes_slots: bool) -> EndpointView:
    """Make the document of a node's worker, for routers; `takes_slots`: whether it has a GPU for a slot."""
    return EndpointView(
        node_id=record.node_id,
        hostname=record.hostname,
        endpoint=endpoint,
        free_slots=max(0, record.slots - record.in_flight_jobs) if takes_slots else 0,
        max_concurrent_jobs=record.slots,
        models=tuple(sorted(record.declared.ready_models)),
        labels=dict(record.declared.labels),
    )


def node_detail(
    record: NodeRecord,
    clock: Clock,
    *,
    thresholds: Thresholds,
    gpus: GpuFacts,
    events: tuple[api.RegistryEvent, ...],
    stored: bool,
) -> api.NodeDetail:
    """Make a node's full document."""
    return api.NodeDetail(
        **_summary_fields(record, clock, thresholds=thresholds, gpus=gpus),
        stored=stored,
        previous_status=record.previous_status and record.previous_status.value,
        checks=tuple(
            api.CheckView(name=one.name, ok=one.ok, detail=one.detail)
            for one in health.checks(record, thresholds)
        ),
        node_checks=_node_checks(record, thresholds),
        healthy_heartbeats=record.liveness.healthy_heartbeats,
        heartbeats_needed=lifecycle.heartbeats_needed(record, thresholds),
        drain=None if record.desired.drain is None else _drain(record.desired.drain, clock),
        granted_labels=dict(record.granted_labels),
        token=_token(record.tokens),
        features=tuple(sorted(record.declared.features)),
        probe_age_seconds=record.liveness.probe_age_seconds,
        platform=record.declared.registration.platform,
        cpu_cores=record.declared.registration.hardware.cpu_cores,
        memory_gb=record.declared.registration.hardware.memory_gb,
        driver_version=record.declared.registration.hardware.driver_version,
        cuda_version=record.declared.registration.hardware.cuda_version,
        capability_schema_version=record.declared.registration.schema_version,
        heartbeat_interval_seconds=record.schedule.interval_seconds,
        heartbeat_timeout_seconds=record.schedule.timeout_seconds,
        session_epoch=record.epoch,
        round_trip_ms=_milliseconds(record.liveness.round_trip_seconds),
        claimed_jobs=tuple(record.claims),
        running_jobs=None if record.jobs.ids is None else tuple(sorted(record.jobs.ids)),
        events=events,
    )


def fleet_figures(
    totals: FleetTotals, *, waiting_jobs: int, longest_wait_seconds: float | None
) -> FleetFigures:
    """Make the document of the fleet's totals."""
    models = sorted(totals.gpu_models.items(), key=lambda one: (-one[1].gpus, one[0]))
    return FleetFigures(
        nodes={status.value: totals.nodes[status] for status in NodeStatus},
        reasons=tuple(
            ReasonCount(status=status.value, reason_code=code.value, nodes=count)
            for (status, code), count in totals.reasons.most_common()
        ),
        attention=totals.attention,
        cordoned=totals.cordoned,
        gpus={status.value: totals.gpus[status] for status in GpuStatus},
        degraded_gpus=totals.degraded_gpus,
        gpu_models=tuple(
            GpuModelCount(
                name=name,
                gpus=one.gpus,
                free=one.free,
                claimed=one.claimed,
                idle=one.idle,
                most_free_on_one_node=one.most_free_on_one_node,
            )
            for name, one in models
        ),
        slots=totals.slots,
        slots_taken=totals.slots_taken,
        models=dict(totals.models.most_common()),
        waiting_jobs=waiting_jobs,
        longest_wait_seconds=None if longest_wait_seconds is None else round(longest_wait_seconds, 3),
    )


def gpu_history(record: NodeRecord, clock: Clock) -> NodeGpuHistory:
    """Make the document of what a node's GPUs did in the last 15 minutes."""
    points = record.gpu_history.points(record.gpus, since=clock.monotonic() - HISTORY_SECONDS)
    return NodeGpuHistory(
        node_id=record.node_id,
        gpus=tuple(
            GpuHistoryView(
                uuid=uuid,
                points=tuple(
                    GpuPointView(**(point._asdict() | {"at": clock.wall_at(point.at)})) for point in own
                ),
            )
            for uuid, own in points.items()
        ),
    )


def claim_view(record: ClaimRecord, clock: Clock, *, held: bool = False) -> api.ClaimView:
    """Make a claim's document; `held` says that it has ended and still holds GPUs."""
    return api.ClaimView(**_claim_fields(record, clock, held=held))


def claim_detail(record: ClaimRecord, clock: Clock, *, held: bool) -> api.ClaimDetail:
    """Make a claim's document with its history."""
    return api.ClaimDetail(
        **_claim_fields(record, clock, held=held),
        history=tuple(api.ClaimNote(at=clock.wall_at(at), text=text) for at, text in _history(record)),
        gpu_use=tuple(
            api.ClaimGpuUse(
                node_id=node_id,
                gpu_uuid=uuid,
                mean_utilization_percent=use.mean_percent,
                highest_utilization_percent=use.highest_percent if use.readings else None,
            )
            for (node_id, uuid), use in record.use.items()
        ),
    )


def _history(record: ClaimRecord) -> Iterator[tuple[float, str]]:
    """Yield what happened to a claim, from its grant to its end."""
    claim = record.claim
    yield claim.granted_at, f"granted on {', '.join(grant.node_id for grant in claim.grants)}"
    yield from record.notes
    if record.end is not None and record.ended_at is not None:
        yield record.ended_at, record.end.value


def waiting_jobs(
    fleet: Fleet, clock: Clock, *, only: Collection[str] | None = None
) -> Iterator[api.WaitingJob]:
    """Make the documents of the jobs that wait, in their order; `only` these, None for all.

    Dispatch is asked once for each different demand.
    """
    refusals: dict[object, NoAvailableNode | None] = {}
    for place, one in enumerate(fleet.queue(), start=1):
        if only is not None and one.job.job_id not in only:
            continue
        key = demand_key(one.job)
        if key not in refusals:
            found = fleet.select(one.job, clock.monotonic())
            refusals[key] = found if isinstance(found, NoAvailableNode) else None
        yield _waiting_job(one, place, clock, refusal=refusals[key])


def _waiting_job(
    waiting: Waiting, position: int, clock: Clock, *, refusal: NoAvailableNode | None
) -> api.WaitingJob:
    """Make the document of a job that waits; `refusal` says why no node takes it now, None where one does."""
    return api.WaitingJob(
        job_id=waiting.job.job_id,
        owner=waiting.owner,
        position=position,
        priority=waiting.job.priority,
        since=clock.wall_at(waiting.since),
        waited_seconds=round(clock.monotonic() - waiting.since, 3),
        open_requests=len(waiting.requests),
        reserved_nodes=tuple(waiting.reserved),
        reason="" if refusal is None else str(refusal),
        counts={} if refusal is None else {reason.value: count for reason, count in refusal.counts.items()},
    )


def _claim_fields(record: ClaimRecord, clock: Clock, *, held: bool) -> dict[str, Any]:
    claim, ended = record.claim, record.end
    state = "active" if ended is None else "held" if held else ended.value
    nodes = tuple(_claim_node(grant) for grant in claim.grants)
    first = nodes[0] if len(nodes) == 1 else None
    sharing = sharing_of(claim.job)
    return {
        "claim_id": claim.claim_id,
        "job_id": claim.job_id,
        "state": state,
        "owner": claim.owner,
        "nodes": nodes,
        "node_id": first and first.node_id,
        "gpu_uuids": first and first.gpu_uuids,
        "endpoint": first and first.endpoint,
        "granted_at": clock.wall_at(claim.granted_at),
        "expires_at": clock.wall_at(claim.expires_at),
        "expires_in_seconds": round(max(0.0, claim.expires_at - clock.monotonic()), 3),
        "ttl_seconds": claim.ttl_seconds,
        "ended_at": None if record.ended_at is None else clock.wall_at(record.ended_at),
        "gpu_sharing": None if sharing is None else sharing.value,
        "min_gpu_memory_mb": claim.job.min_gpu_memory_mb,
        "affinity_key": claim.job.affinity_key,
        "priority": claim.job.priority,
        "idle_since": None if record.idle_since is None else clock.wall_at(record.idle_since),
        "unusable_gpus": tuple(sorted(record.unusable)),
    }


def _claim_node(grant: Grant) -> api.ClaimNode:
    return api.ClaimNode(
        node_id=grant.node_id,
        hostname=grant.hostname,
        gpu_uuids=known_gpu_uuids(grant.gpu_uuids),
        gpu_indices=grant.gpu_indices,
        endpoint=grant.endpoint,
    )


def claims_page(
    claims: Iterable[ClaimRecord],
    *,
    node_id: str | None = None,
    after: str | None = None,
    limit: int | None = None,
) -> list[ClaimRecord]:
    """Return the first claims by job, on one node, after one job, up to a limit; each is optional.

    Looks at tens of thousands of claims, and sorts only those of the page.
    """
    wanted = (
        one
        for one in claims
        if (node_id is None or one.claim.on(node_id) is not None)
        and (after is None or one.claim.job_id > after)
    )
    return sorted(wanted, key=_by_job) if limit is None else heapq.nsmallest(limit, wanted, key=_by_job)


def selection_view(job_id: str, chosen: Choice | Claim) -> api.Selection:
    """Make the document of the slots that a job would get, or has claimed."""
    nodes = tuple(_claim_node(grant) for grant in chosen.grants)
    first = nodes[0] if len(nodes) == 1 else None
    return api.Selection(
        job_id=job_id,
        nodes=nodes,
        node_id=first and first.node_id,
        gpu_uuids=first and first.gpu_uuids,
        endpoint=first and first.endpoint,
        score=chosen.score if isinstance(chosen, Choice) else None,
    )


def claim_order(record: ClaimRecord) -> tuple[int, str]:
    """Return by what claims are sorted for people: faults first, then idle ones, then by job."""
    rank = 0 if record.unusable else 1 if record.idle_since is not None else 2
    return rank, record.claim.job_id


def _by_job(record: ClaimRecord) -> tuple[str, float]:
    return record.claim.job_id, record.claim.granted_at


def exclusions_view(window: ExclusionWindow, clock: Clock) -> api.ExclusionsView:
    """Make the document of one minute in which dispatches failed."""
    return api.ExclusionsView(
        window_start=clock.wall_at(window.start),
        window_end=clock.wall_at(window.end),
        failed=window.failed,
        counts={reason.value: count for reason, count in window.counts.items()},
        examples={
            reason.value: tuple(_excluded_node(one) for one in shown)
            for reason, shown in window.examples.items()
        },
        last_jobs=window.last_jobs,
    )


def no_available_node_fields(refusal: NoAvailableNode) -> dict[str, object]:
    """Return what the problem document of a failed dispatch holds besides: counts and examples (A-8)."""
    return {
        "job_id": refusal.job_id,
        "nodes_needed": refusal.nodes_needed,
        "nodes_eligible": refusal.nodes_eligible,
        "counts": {reason.value: count for reason, count in refusal.counts.items()},
        "examples": {
            reason.value: tuple(_excluded_node(one) for one in shown)
            for reason, shown in refusal.examples.items()
        },
    }


async def explanation_json(explanation: Explanation, excluded: Sequence[Excluded]) -> AsyncIterator[bytes]:
    """Write an explanation, and these of its excluded nodes, as `ExplanationView` reads it.

    It comes in pieces: for 10,000 nodes it takes 2 MB.
    """
    yield b'{"job_id":' + json.dumps(explanation.job_id).encode() + b',"eligible":['
    async for piece in _list_items(explanation.eligible, _NAMES):
        yield piece
    yield b'],"eligible_nodes":['
    async for piece in _list_items(explanation.eligible_nodes, _ELIGIBLE):
        yield piece
    yield b'],"excluded":['
    async for piece in _list_items(excluded, _EXCLUDED):
        yield piece
    counts = {reason.value: count for reason, count in explanation.counts.items()}
    yield b'],"nodes_needed":%d,"counts":' % explanation.nodes_needed + json.dumps(counts).encode() + b"}"


def known_gpu_uuids(uuids: tuple[str, ...]) -> tuple[str, ...]:
    """Leave out the placeholders of GPUs that were declared without a UUID."""
    return tuple(uuid for uuid in uuids if not uuid.startswith("#"))


def _summary_fields(
    record: NodeRecord, clock: Clock, *, thresholds: Thresholds, gpus: GpuFacts
) -> dict[str, Any]:
    declared, states = record.declared.registration, record.declared.models.states()
    usage = record.liveness.usage
    return {
        "node_id": record.node_id,
        "hostname": record.hostname,
        "status": record.status.value,
        "reason_code": record.reason_code.value,
        "reason": record.reason,
        "since": clock.wall_at(record.since),
        "clears_when": lifecycle.clears_when(record, thresholds, clock.monotonic()),
        "connected": record.connected,
        "gpus": tuple(_gpus(record, gpus, clock)),
        "installed_models": tuple(_model(model, states) for model in record.declared.models.models()),
        "in_flight_jobs": record.in_flight_jobs,
        "max_concurrent_jobs": record.slots,
        "accept_public_jobs": declared.accept_public_jobs,
        "last_heartbeat_age_seconds": _age(record.liveness.last_heartbeat_at, clock),
        "simulated": declared.simulated,
        "cordoned": record.desired.cordoned,
        "endpoint": declared.endpoint,
        "address": record.address,
        "agent_version": declared.version,
        "labels": dict(record.declared.labels),
        "cpu_percent": None if usage is None else usage.cpu_percent,
        "mem_percent": None if usage is None else usage.mem_percent,
    }


def _node_checks(record: NodeRecord, thresholds: Thresholds) -> tuple[api.NodeCheckView, ...] | None:
    if record.checks is None:
        return None
    required = thresholds.admission.required_checks
    return tuple(
        api.NodeCheckView(
            name=one.name,
            scope=one.scope,
            ok=one.ok,
            detail=one.detail,
            at=one.at,
            required=one.name in required,
        )
        for one in record.checks.listed
    )


def _gpus(record: NodeRecord, facts: GpuFacts, clock: Clock) -> Iterator[api.GpuView]:
    statuses = iter(facts.statuses)
    for gpu in record.gpus.values():
        status = None if gpu.is_parent else next(statuses, None)
        yield _gpu(gpu, record, status, history=facts.history, clock=clock)


def _gpu(
    gpu: GpuState, record: NodeRecord, status: GpuStatus | None, *, history: ClaimHistory, clock: Clock
) -> api.GpuView:
    cordon = record.desired.gpu_cordons.get(gpu.uuid)
    holder = next((one for one in record.claims.values() if _holds(one, record, gpu)), None)
    ended = next((one for one in record.held.values() if gpu.uuid in one.gpu_uuids), None)
    duplicate = ("gpu_uuid_duplicate",) if gpu.uuid in record.duplicate_gpus else ()
    watched = None if holder is None else history.of_job(holder.job_id)
    idle_since = None if watched is None else watched.idle_since
    since = None if gpu.health == Health.OK else record.gpus.since(gpu.uuid)
    return api.GpuView(
        uuid=gpu.uuid,
        index=gpu.index,
        name=gpu.name,
        memory_mb=gpu.memory_mb,
        memory_used_mb=gpu.memory_used_mb,
        utilization_percent=gpu.utilization_percent,
        temperature_c=gpu.temperature_c,
        power_w=gpu.power_w,
        health=gpu.health,
        reasons=(*gpu.reasons, *(f"{CHECK_FAILED}: {name}" for name in gpu.failed_checks), *duplicate),
        usable=gpu.usable,
        parent_uuid=gpu.parent_uuid,
        cordoned=None if cordon is None else str(cordon),
        claimed_by=None if holder is None else holder.job_id,
        shared_by=tuple(
            one.job_id
            for one in record.claims.values()
            if sharing_of(one.job) is Sharing.MEMORY and _names(one, record, gpu)
        ),
        held_for=None if ended is None else ended.claim.job_id,
        processes=gpu.processes,
        idle=idle_since is not None,
        idle_since=None if idle_since is None else clock.wall_at(idle_since),
        status=status,
        since=None if since is None else clock.wall_at(since),
        next_step=_next_step(gpu),
    )


def _next_step(gpu: GpuState) -> str | None:
    if gpu.reasons:
        step = next_step(gpu.reasons, name=gpu.name, indexes=(gpu.index,))
        return step or _NEXT_STEPS.get(gpu.reasons[0])
    return _AFTER_FAILED_CHECK if gpu.failed_checks else None


_AFTER_FAILED_CHECK = "see what the check found, correct it, and have the node run its checks again"
_NEXT_STEPS: Mapping[str, str] = {NOT_REPORTED: "see the agent's log on the node: the GPU was declared"}


def _holds(claim: Claim, record: NodeRecord, gpu: GpuState) -> bool:
    return _names(claim, record, gpu) and sharing_of(claim.job) is Sharing.EXCLUSIVE


def _names(claim: Claim, record: NodeRecord, gpu: GpuState) -> bool:
    grant = claim.on(record.node_id)
    return grant is not None and gpu.uuid in grant.gpu_uuids


def _model(model: InstalledModel, state: Mapping[str, str] | None) -> api.ModelView:
    return api.ModelView(
        model_id=model.model_id,
        version=model.version,
        kind=model.kind,
        enabled=model.enabled,
        status=model.status if state is None else state.get(model.model_id, model.status),
    )


def _drain(drain: Drain, clock: Clock) -> api.DrainView:
    return api.DrainView(
        by_operator=drain.by_operator, deadline=clock.wall_at(drain.deadline), reason=drain.reason
    )


def _token(tokens: NodeTokens) -> api.NodeTokenView | None:
    if not tokens.all:
        return None
    token_id = (tokens.current or tokens.all[0]).token_id
    return api.NodeTokenView(token_id=token_id, rotating=tokens.rotating, joined_by=tokens.joined_by)


def _excluded_node(one: Excluded) -> api.ExcludedNode:
    return api.ExcludedNode(
        node_id=one.node_id, hostname=one.hostname, reason=one.reason.value, need=one.need, have=one.have
    )


def _has_label(record: NodeRecord, name: str, values: str | tuple[str, ...]) -> bool:
    value = record.declared.labels.get(name)
    return value is not None and value in ((values,) if isinstance(values, str) else values)


def _mentions(record: NodeRecord, part: str) -> bool:
    declared = record.declared
    names = (record.hostname, record.node_id, record.address, *declared.labels.values())
    return (
        any(part in name.lower() for name in names if name is not None)
        or _has_gpu(record.gpus.names, part)
        or any(part in model_id.lower() for model_id in declared.ready_models)
    )


@lru_cache(maxsize=256)
def _has_gpu(names: tuple[str | None, ...], part: str) -> bool:
    """Cached: ten thousand nodes have few different sets of GPUs."""
    return any(part in name.lower() for name in names if name is not None)


async def _list_items(items: Sequence[T], adapter: TypeAdapter[tuple[T, ...]]) -> AsyncIterator[bytes]:
    """Write the items of a list, without its brackets; after each piece other tasks run."""
    left, separator = iter(items), b""
    while some := tuple(islice(left, NODES_IN_A_PIECE)):
        yield separator + adapter.dump_json(some)[1:-1]
        separator = b","
        await asyncio.sleep(0)


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e3, 3)


def _age(moment: float | None, clock: Clock) -> float | None:
    return None if moment is None else round(clock.monotonic() - moment, 3)
