"""Makes the documents that the registry shows of its nodes, claims and dispatches, in wall time.

Derives nothing that the fleet does not know.
"""

import asyncio
import heapq
import json
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import lru_cache
from itertools import islice
from operator import attrgetter
from typing import TypeVar

from pydantic import TypeAdapter

from gpu_agent.registry import declaration as admission
from gpu_agent.registry import health
from gpu_agent.registry import status as telling
from gpu_agent.registry.credentials import NodeTokens
from gpu_agent.registry.dispatch.dispatch import Choice
from gpu_agent.registry.dispatch.refusals import Excluded, ExclusionWindow, Explanation
from gpu_agent.registry.gpus import GpuState
from gpu_agent.registry.job import Claim
from gpu_agent.registry.node import Drain, NodeRecord
from gpu_agent.registry.settings import Thresholds
from gpu_agent.server.clock import Clock
from gpu_agent.store.base import RegistryEvent
from gpu_agent.wire.codes import NodeStatus
from gpu_agent.wire.messages import InstalledModel

# What the registry shows of nodes, claims and verdicts outside: wall times, and names that stay.
#
# These shapes are the operator API's JSON and what an embedding scheduler reads. `viewing` fills them.


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuView:
    """A GPU with the figures of the node's last beat; None where they are unknown."""

    uuid: str
    """A GPU declared without one is named by its place: `#0`, `#1`, …"""
    name: str
    memory_mb: int | None
    memory_used_mb: int | None
    utilization_percent: float | None
    temperature_c: float | None
    power_w: float | None
    health: str
    reasons: tuple[str, ...]
    usable: bool
    parent_uuid: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelView:
    """An installed model; `status` as the node's newest word has it."""

    model_id: str
    version: str
    kind: str | None
    enabled: bool
    status: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSummary:
    """A node as a list shows it. `since` is Unix time."""

    node_id: str
    status: str
    reason_code: str
    reason: str
    since: float
    clears_when: str | None
    """What would change the status; None for a ready node."""
    connected: bool
    gpus: tuple[GpuView, ...]
    installed_models: tuple[ModelView, ...]
    in_flight_jobs: int
    max_concurrent_jobs: int
    accept_public_jobs: bool
    last_heartbeat_age_seconds: float | None
    simulated: bool
    cordoned: str | None
    endpoint: str | None
    address: str | None
    agent_version: str
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckView:
    """One health check behind a status."""

    name: str
    ok: bool
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainView:
    """A wish to empty a node; `deadline` is the Unix time at which it goes offline whatever runs."""

    by_operator: bool
    deadline: float
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeTokenView:
    """By which token a node proves who it is: its id, never its secret."""

    token_id: str
    rotating: bool
    """It is to have another one, and has not used it yet."""
    joined_by: str | None
    """The join token that let it in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeDetail(NodeSummary):
    """A node in full: what stands behind its status, and what happened to it lately."""

    previous_status: str | None
    checks: tuple[CheckView, ...]
    healthy_beats: int
    beats_needed: int
    drain: DrainView | None
    granted_labels: Mapping[str, str]
    """Those among `labels` that its join token gave it, whatever the node says."""
    token: NodeTokenView | None
    """None for a node that has none: auth was off when it came, or its token was ended at once."""
    features: tuple[str, ...]
    cpu_percent: float | None
    mem_percent: float | None
    probe_age_seconds: float | None
    platform: str | None
    cpu_cores: int
    memory_gb: int
    driver_version: str | None
    cuda_version: str | None
    capability_schema_version: str
    heartbeat_interval_seconds: float
    heartbeat_timeout_seconds: float
    session_epoch: int
    round_trip_ms: float | None
    """What the network takes to the node and back; None where that is not known."""
    claimed_jobs: tuple[str, ...]
    running_jobs: tuple[str, ...] | None
    events: tuple[RegistryEvent, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """A place reserved for a job. `expires_at` is Unix time; renew or release before it.

    `gpu_uuids` names the GPUs that have one; a node of schema 1.0 declares none.
    """

    job_id: str
    node_id: str
    gpu_uuids: tuple[str, ...]
    """As the node's view names them."""
    endpoint: str | None
    expires_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimView:
    """A place that a job holds. Times are Unix time."""

    job_id: str
    node_id: str
    gpu_uuids: tuple[str, ...]
    endpoint: str | None
    granted_at: float
    expires_at: float
    memory_mb: int
    """GPU memory that the job states it needs on each of its GPUs."""
    affinity_key: str | None


# How the registry's records, claims and drains are shown outside: fills the shapes of `views`.
#
# Derives nothing that the fleet does not know.


def node_summary(record: NodeRecord, clock: Clock, thresholds: Thresholds) -> NodeSummary:
    """Show what a list shows."""
    return NodeSummary(
        node_id=record.node_id,
        status=record.status.value,
        reason_code=record.reason_code.value,
        reason=record.reason,
        since=clock.wall_at(record.since),
        clears_when=telling.clears_when(record, thresholds, clock.monotonic()),
        connected=record.connected,
        gpus=tuple(_gpu(gpu) for gpu in record.gpus.values()),
        installed_models=tuple(_model(model, record.capability_state) for model in record.models),
        in_flight_jobs=record.in_flight_jobs,
        max_concurrent_jobs=record.max_concurrent_jobs,
        accept_public_jobs=record.accept_public_jobs,
        last_heartbeat_age_seconds=_age(record.last_heartbeat_at, clock),
        simulated=record.simulated,
        cordoned=record.cordoned,
        endpoint=record.endpoint,
        address=record.address,
        agent_version=record.registration.version,
        labels=dict(record.labels),
    )


def node_detail(
    record: NodeRecord, clock: Clock, *, thresholds: Thresholds, events: tuple[RegistryEvent, ...]
) -> NodeDetail:
    """Show all that is known of a node."""
    listed, usage = node_summary(record, clock, thresholds), record.usage
    return NodeDetail(
        **{one.name: getattr(listed, one.name) for one in fields(NodeSummary)},
        previous_status=record.previous_status and record.previous_status.value,
        checks=tuple(
            CheckView(name=one.name, ok=one.ok, detail=one.detail)
            for one in health.checks(record, thresholds)
        ),
        healthy_beats=record.healthy_beats,
        beats_needed=telling.heartbeats_needed(record, thresholds),
        drain=None if record.drain is None else _drain(record.drain, clock),
        granted_labels=dict(record.granted_labels),
        token=_token(record.keys),
        features=tuple(sorted(record.features)),
        cpu_percent=None if usage is None else usage.cpu_percent,
        mem_percent=None if usage is None else usage.mem_percent,
        probe_age_seconds=record.probe_age_seconds,
        platform=record.registration.platform,
        cpu_cores=record.hardware.cpu_cores,
        memory_gb=record.hardware.memory_gb,
        driver_version=record.hardware.driver_version,
        cuda_version=record.hardware.cuda_version,
        capability_schema_version=admission.schema_of(record.registration),
        heartbeat_interval_seconds=record.interval_seconds,
        heartbeat_timeout_seconds=record.timeout_seconds,
        session_epoch=record.epoch,
        round_trip_ms=_milliseconds(record.round_trip_seconds),
        claimed_jobs=tuple(record.claims),
        running_jobs=None if record.reported_job_ids is None else tuple(sorted(record.reported_job_ids)),
        events=events,
    )


def placement(claim: Claim, clock: Clock) -> Placement:
    """Copy what a scheduler needs of its claim."""
    return Placement(
        job_id=claim.job_id,
        node_id=claim.node_id,
        gpu_uuids=known_gpu_uuids(claim.gpu_uuids),
        endpoint=claim.endpoint,
        expires_at=clock.wall_at(claim.expires_at),
    )


def claim_view(held: Claim, clock: Clock) -> ClaimView:
    """Show who holds a place until when."""
    placed = placement(held, clock)
    return ClaimView(
        **{one.name: getattr(placed, one.name) for one in fields(Placement)},
        granted_at=clock.wall_at(held.granted_at),
        memory_mb=held.memory_mb,
        affinity_key=held.affinity_key,
    )


def known_gpu_uuids(uuids: tuple[str, ...]) -> tuple[str, ...]:
    """Leave out what stands in for the UUID of a GPU that was declared without one."""
    return tuple(uuid for uuid in uuids if not uuid.startswith("#"))


def _gpu(gpu: GpuState) -> GpuView:
    return GpuView(
        uuid=gpu.uuid,
        name=gpu.name,
        memory_mb=gpu.memory_mb,
        memory_used_mb=gpu.memory_used_mb,
        utilization_percent=gpu.utilization_percent,
        temperature_c=gpu.temperature_c,
        power_w=gpu.power_w,
        health=gpu.health,
        reasons=gpu.reasons,
        usable=gpu.usable,
        parent_uuid=gpu.parent_uuid,
    )


def _model(model: InstalledModel, state: Mapping[str, str] | None) -> ModelView:
    return ModelView(
        model_id=model.model_id,
        version=model.version,
        kind=model.kind,
        enabled=model.enabled,
        status=model.status if state is None else state.get(model.model_id, model.status),
    )


def _drain(drain: Drain, clock: Clock) -> DrainView:
    return DrainView(
        by_operator=drain.by_operator, deadline=clock.wall_at(drain.deadline), reason=drain.reason
    )


def _token(keys: NodeTokens) -> NodeTokenView | None:
    if not keys.all:
        return None
    token_id = (keys.current or keys.all[0]).token_id
    return NodeTokenView(token_id=token_id, rotating=keys.rotating, joined_by=keys.joined_by)


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e3, 3)


def _age(moment: float | None, clock: Clock) -> float | None:
    return None if moment is None else round(clock.monotonic() - moment, 3)


# What the registry shows of selections and failed dispatches outside: wall times, names that stay.
#
# Derives nothing that the fleet does not know.


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The place that a claim would get at this moment; nothing is reserved by it."""

    job_id: str
    node_id: str
    gpu_uuids: tuple[str, ...]
    endpoint: str | None
    score: int | None
    """How good the place is, affinity included; None for a job that holds it already."""

    @property
    def held(self) -> bool:
        """True when the job holds this place by a claim."""
        return self.score is None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleView:
    """One node that a failed dispatch fell to: what the job needed, what the node had."""

    node_id: str
    need: str
    have: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ExclusionsView:
    """A minute in which dispatches failed. Times are Unix time."""

    window_start: float
    window_end: float
    failed: int
    """Dispatches that found nobody."""
    counts: Mapping[str, int]
    """How many nodes fell to each reason, over all of them."""
    examples: Mapping[str, tuple[ExampleView, ...]]
    last_jobs: tuple[str, ...]


def selection_view(job_id: str, chosen: Choice | Claim) -> Selection:
    """Show the place that a job would get, or has."""
    return Selection(
        job_id=job_id,
        node_id=chosen.node_id,
        gpu_uuids=known_gpu_uuids(chosen.gpu_uuids),
        endpoint=chosen.endpoint,
        score=chosen.score if isinstance(chosen, Choice) else None,
    )


def exclusions_view(window: ExclusionWindow, clock: Clock) -> ExclusionsView:
    """Show what dispatches failed on in one minute."""
    return ExclusionsView(
        window_start=clock.wall_at(window.start),
        window_end=clock.wall_at(window.end),
        failed=window.failed,
        counts={reason.value: count for reason, count in window.counts.items()},
        examples={
            reason.value: tuple(
                ExampleView(node_id=one.node_id, need=one.need, have=one.have) for one in shown
            )
            for reason, shown in window.examples.items()
        },
        last_jobs=window.last_jobs,
    )


# A page of the claims that are held, by job. Looks at tens of thousands and shows only those of the page.


_BY_JOB = attrgetter("job_id")


def claims_page(
    claims: Iterable[Claim], *, node_id: str | None = None, after: str | None = None, limit: int | None = None
) -> list[Claim]:
    """Return the first claims by job, on a node if one is named, behind a job if one is named."""
    wanted = (
        claim
        for claim in claims
        if (node_id is None or claim.node_id == node_id) and (after is None or claim.job_id > after)
    )
    return sorted(wanted, key=_BY_JOB) if limit is None else heapq.nsmallest(limit, wanted, key=_BY_JOB)


# Which nodes an operator wants to see. Judges records; orders and shows nothing.


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFilter:
    """Wishes that a node must meet, all of them; each that is left out is no wish."""

    statuses: frozenset[NodeStatus] = frozenset()
    """Any one of these."""
    model: str | None = None
    """A model that is installed, enabled and ready."""
    labels: Mapping[str, str] = field(default_factory=dict)
    gpu_name: str | None = None
    """Part of a GPU's name, whatever the case."""
    connected: bool | None = None

    def admits(self, record: NodeRecord) -> bool:
        """Say whether a node is wanted."""
        if self.statuses and record.status not in self.statuses:
            return False
        if self.connected is not None and record.connected is not self.connected:
            return False
        if self.model is not None and self.model not in record.ready_models:
            return False
        if any(record.labels.get(name) != value for name, value in self.labels.items()):
            return False
        return self.gpu_name is None or _has_gpu(record.gpus.names, self.gpu_name.lower())


ALL_NODES = NodeFilter()


@lru_cache(maxsize=256)
def _has_gpu(names: tuple[str | None, ...], part: str) -> bool:
    """Remembered: ten thousand nodes have few kinds of GPUs between them."""
    return any(part in name.lower() for name in names if name is not None)


# An explanation as JSON, written piece by piece: of ten thousand nodes it takes two megabytes.


NODES_IN_A_PIECE = 256

T = TypeVar("T")

_NAMES = TypeAdapter(tuple[str, ...])
_REASONS = TypeAdapter(tuple[Excluded, ...])


async def explanation_json(explanation: Explanation) -> AsyncIterator[bytes]:
    """Write it as `ExplanationAnswer` reads; after each piece everybody else has a turn."""
    yield b'{"job_id":' + json.dumps(explanation.job_id).encode() + b',"able":['
    async for piece in _listed(explanation.able, _NAMES):
        yield piece
    yield b'],"excluded":['
    async for piece in _listed(explanation.excluded, _REASONS):
        yield piece
    counts = {reason.value: count for reason, count in explanation.counts.items()}
    yield b'],"counts":' + json.dumps(counts).encode() + b"}"


async def _listed(items: Sequence[T], adapter: TypeAdapter[tuple[T, ...]]) -> AsyncIterator[bytes]:
    """Write the items of a list, without its brackets."""
    left, separator = iter(items), b""
    while some := tuple(islice(left, NODES_IN_A_PIECE)):
        yield separator + adapter.dump_json(some)[1:-1]
        separator = b","
        await asyncio.sleep(0)
