"""How the registry's records, claims and drains are shown outside: fills the shapes of `views`.

Derives nothing that the fleet does not know.
"""

from collections.abc import Mapping
from dataclasses import fields

from gpu_agent.registry import admission, health, telling
from gpu_agent.registry.gpus import GpuState
from gpu_agent.registry.job import Claim
from gpu_agent.registry.keys import NodeKeys
from gpu_agent.registry.record import Drain, NodeRecord
from gpu_agent.registry.thresholds import Thresholds
from gpu_agent.server.chronicle import RegistryEvent
from gpu_agent.server.clock import Clock
from gpu_agent.server.views import (
    CheckView,
    ClaimView,
    DrainView,
    GpuView,
    ModelView,
    NodeDetail,
    NodeSummary,
    NodeTokenView,
    Placement,
)
from gpu_agent.wire.messages import InstalledModel


def summary(record: NodeRecord, clock: Clock, thresholds: Thresholds) -> NodeSummary:
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
        last_beat_age_seconds=_age(record.last_beat, clock),
        simulated=record.simulated,
        cordoned=record.cordoned,
        endpoint=record.endpoint,
        address=record.address,
        agent_version=record.registration.version,
        labels=dict(record.labels),
    )


def detail(
    record: NodeRecord, clock: Clock, *, thresholds: Thresholds, events: tuple[RegistryEvent, ...]
) -> NodeDetail:
    """Show all that is known of a node."""
    listed, usage = summary(record, clock, thresholds), record.usage
    return NodeDetail(
        **{one.name: getattr(listed, one.name) for one in fields(NodeSummary)},
        previous_status=record.previous_status and record.previous_status.value,
        checks=tuple(
            CheckView(name=one.name, ok=one.ok, detail=one.detail)
            for one in health.checks(record, thresholds)
        ),
        healthy_beats=record.healthy_beats,
        beats_needed=telling.beats_needed(record, thresholds),
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
        gpu_uuids=named_gpus(claim.gpu_uuids),
        endpoint=claim.endpoint,
        expires_at=clock.wall_at(claim.expires_at),
    )


def claim(held: Claim, clock: Clock) -> ClaimView:
    """Show who holds a place until when."""
    placed = placement(held, clock)
    return ClaimView(
        **{one.name: getattr(placed, one.name) for one in fields(Placement)},
        granted_at=clock.wall_at(held.granted_at),
        memory_mb=held.memory_mb,
        affinity_key=held.affinity_key,
    )


def named_gpus(uuids: tuple[str, ...]) -> tuple[str, ...]:
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


def _token(keys: NodeKeys) -> NodeTokenView | None:
    if not keys.all:
        return None
    token_id = (keys.current or keys.all[0]).token_id
    return NodeTokenView(token_id=token_id, rotating=keys.rotating, joined_by=keys.joined_by)


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e3, 3)


def _age(moment: float | None, clock: Clock) -> float | None:
    return None if moment is None else round(clock.monotonic() - moment, 3)
