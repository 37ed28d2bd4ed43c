"""The answer to `status`: the agent, its session, its GPUs, models and jobs in one document.

Instants become Unix times and ages; unknown is null. The status that the registry sent last comes with its
age.
"""

import os
import platform

from gpu_agent.node.jobs import AnnouncedJob, Jobs
from gpu_agent.node.snapshot import CONNECTED, Snapshot
from gpu_agent.probe.snapshot import document_fields
from gpu_agent.records import dataclass, replace
from gpu_agent.session.types import State
from gpu_agent.version import __version__
from gpu_agent.wire.codes import NodeStatus
from gpu_agent.wire.control import (
    AdmissionCheckInfo,
    AgentInfo,
    CheckInfo,
    DrainInfo,
    JobInfo,
    JobsInfo,
    PauseInfo,
    PublicJobsInfo,
    SessionInfo,
    StatusDocument,
    StatusInfo,
)
from gpu_agent.wire.inventory import ModelStatus
from gpu_agent.wire.probe_document import MachineDocument

MAX_MODELS = 2000
"""Of more models, the document lists those that cannot serve first; `models_found` counts all."""


@dataclass(frozen=True, slots=True)
class Instant:
    """One instant by both clocks."""

    monotonic: float
    wall: float

    def wall_of(self, instant: float | None) -> float | None:
        """The Unix time of a monotonic instant."""
        return None if instant is None else round(self.wall + instant - self.monotonic, 3)

    def until(self, instant: float | None) -> float | None:
        """Seconds until that instant; 0 for one in the past."""
        return None if instant is None else round(max(0.0, instant - self.monotonic), 3)

    def since(self, instant: float | None) -> float | None:
        """Seconds since that instant."""
        return None if instant is None else round(max(0.0, self.monotonic - instant), 3)


def status_document(snapshot: Snapshot, jobs: Jobs, *, started_at: float, instant: Instant) -> StatusDocument:
    """Make the document. `started_at`: when the agent started, as Unix time."""
    session, public_jobs = snapshot.session, snapshot.public_jobs
    return StatusDocument(
        schema_id="gpu-agent.status/1",
        agent=AgentInfo(
            version=__version__,
            pid=os.getpid(),
            hostname=platform.node(),
            started_at=round(started_at, 3),
            state_problem=snapshot.state_problem,
            settings_problem=snapshot.settings_problem,
        ),
        node_id=session.node_id,
        connected=session.state in CONNECTED,
        ready=is_ready(snapshot),
        session=_session(snapshot, instant),
        status=_status(snapshot, instant),
        drain=_drain(snapshot, instant),
        accept_public_jobs=public_jobs.accepted,
        public_jobs=PublicJobsInfo(
            wanted=public_jobs.wanted,
            pauses=tuple(
                PauseInfo(limit=pause.limit.value, detail=pause.detail) for pause in public_jobs.pauses
            ),
        ),
        max_concurrent_jobs=snapshot.owner.max_concurrent_jobs,
        labels=dict(snapshot.owner.labels),
        jobs=JobsInfo(announced=jobs.ids is not None, in_flight=tuple(map(job_info, jobs.in_flight))),
        checks=tuple(
            AdmissionCheckInfo(
                name=one.name,
                scope=one.scope,
                ok=one.ok,
                detail=one.detail,
                at=one.at,
                not_repeated=one.not_repeated,
            )
            for one in snapshot.checks
        ),
        machine=_machine(snapshot),
    )


def is_ready(snapshot: Snapshot) -> bool:
    """Whether the agent is connected and the registry has last said that the node is ready."""
    status = snapshot.session.registry_status
    return snapshot.session.state in CONNECTED and status is not None and status.status == NodeStatus.READY


def job_info(job: AnnouncedJob) -> JobInfo:
    """One job as the documents list it."""
    return JobInfo(
        job_id=job.job_id,
        uid=job.uid,
        since=round(job.since, 3),
        pid=job.worker.pid,
        held_by=job.worker.kind,
    )


def _session(snapshot: Snapshot, instant: Instant) -> SessionInfo:
    session = snapshot.session
    return SessionInfo(
        registry=session.address,
        other_addresses=tuple(url for url in snapshot.registry_urls if url != session.address),
        state=session.state.value,
        since=instant.wall_of(snapshot.state_since),
        link_since=instant.wall_of(snapshot.link_since),
        why=None if session.state is State.REGISTERED else session.last_refusal,
        token_problem=snapshot.token_problem,
        last_heartbeat_at=instant.wall_of(snapshot.last_heartbeat_at),
        last_heartbeat_age_seconds=instant.since(snapshot.last_heartbeat_at),
        heartbeats=session.sequence,
        interval_seconds=session.interval_seconds,
        next_attempt_at=instant.wall_of(session.next_attempt_at),
        next_attempt_in_seconds=instant.until(session.next_attempt_at),
    )


def _status(snapshot: Snapshot, instant: Instant) -> StatusInfo | None:
    status = snapshot.session.registry_status
    if status is None:
        return None
    details = status.details
    checks = () if details is None else details.checks
    return StatusInfo(
        status=status.status,
        reason=status.reason,
        reason_code=status.reason_code,
        since=status.since,
        received_at=instant.wall_of(snapshot.status_received_at),
        received_age_seconds=instant.since(snapshot.status_received_at),
        current=snapshot.session.state in CONNECTED,
        checks=tuple(CheckInfo(name=check.name, ok=check.ok, detail=check.detail) for check in checks),
        in_flight_jobs=None if details is None else details.in_flight_jobs,
        drain_deadline=None if details is None else details.drain_deadline,
        clears_when=None if details is None else details.clears_when,
    )


def _drain(snapshot: Snapshot, instant: Instant) -> DrainInfo | None:
    session = snapshot.session
    if session.drain_reason is None:
        return None
    return DrainInfo(
        reason=session.drain_reason,
        over=session.state is State.DRAINED,
        deadline_at=instant.wall_of(session.drain_until),
        deadline_in_seconds=instant.until(session.drain_until),
    )


def _machine(snapshot: Snapshot) -> MachineDocument | None:
    """The last probe's document with its age."""
    inventory = snapshot.inventory
    if inventory is None:
        return None
    models = inventory.models
    if len(models) > MAX_MODELS:  # cut first: to write all of them takes long
        models = tuple(sorted(models, key=lambda model: model.status is ModelStatus.READY)[:MAX_MODELS])
    return MachineDocument.model_validate(
        {
            **document_fields(replace(inventory, models=models)),
            "probe_age_seconds": snapshot.probe_age_seconds,
            "models_found": len(inventory.models),
            "models_not_declared": snapshot.session.models_left_out[:MAX_MODELS],
        }
    )
