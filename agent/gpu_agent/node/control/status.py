"""The answer to `status`: the agent, its session, its GPUs, models and jobs in one document.

Instants become Unix times and ages; unknown is null. The registry's last word comes with its age.
"""

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from gpu_agent.node.control.requests import AnnouncedJob
from gpu_agent.node.snapshot import CONNECTED, Snapshot
from gpu_agent.probe.snapshot import to_document
from gpu_agent.session.types import State
from gpu_agent.version import __version__
from gpu_agent.wire.codes import NodeStatus
from gpu_agent.wire.inventory import ModelStatus

SCHEMA = "gpu-agent.status/1"
MOST_MODELS = 2000
"""Of more, the ones that cannot serve are told before the others; how many there are is told anyway."""


@dataclass(frozen=True, slots=True)
class Instant:
    """One instant by both clocks."""

    monotonic: float
    wall: float

    def wall_of(self, instant: float | None) -> float | None:
        """The Unix time of a monotonic instant."""
        return None if instant is None else round(self.wall + instant - self.monotonic, 3)

    def until(self, instant: float | None) -> float | None:
        """How long it is until then, in seconds; 0 for what is past."""
        return None if instant is None else round(max(0.0, instant - self.monotonic), 3)

    def since(self, instant: float | None) -> float | None:
        """How long ago that was, in seconds."""
        return None if instant is None else round(max(0.0, self.monotonic - instant), 3)


def status_document(
    snapshot: Snapshot, jobs: Sequence[AnnouncedJob], *, announced: bool, started_at: float, moment: Instant
) -> dict[str, Any]:
    """Make the document. `announced`: whether any program here has ever announced a job."""
    session = snapshot.session
    return {
        "schema": SCHEMA,
        "agent": {
            "version": __version__,
            "pid": os.getpid(),
            "hostname": platform.node(),
            "started_at": round(started_at, 3),
        },
        "node_id": session.node_id,
        "connected": session.state in CONNECTED,
        "ready": is_ready(snapshot),
        "session": _session(snapshot, moment),
        "status": _status(snapshot, moment),
        "drain": _drain(snapshot, moment),
        "accept_public_jobs": snapshot.public_jobs.accepted,
        "public_jobs": {
            "wanted": snapshot.public_jobs.wanted,
            "pauses": [
                {"limit": pause.limit.value, "detail": pause.detail} for pause in snapshot.public_jobs.pauses
            ],
        },
        "max_concurrent_jobs": snapshot.owner.max_concurrent_jobs,
        "labels": dict(snapshot.owner.labels),
        "jobs": {"announced": announced, "in_flight": [job.document() for job in jobs]},
        "machine": _machine(snapshot),
    }


def is_ready(snapshot: Snapshot) -> bool:
    """Whether the registry hears this node and has said last that it is ready."""
    verdict = snapshot.session.registry_status
    return snapshot.session.state in CONNECTED and verdict is not None and verdict.status == NodeStatus.READY


def _session(snapshot: Snapshot, moment: Instant) -> dict[str, Any]:
    session = snapshot.session
    return {
        "registry": snapshot.registry_url,
        "state": session.state.value,
        "since": moment.wall_of(snapshot.state_since),
        "link_since": moment.wall_of(snapshot.link_since),
        "why": None if session.state is State.REGISTERED else session.last_refusal,
        "last_heartbeat_at": moment.wall_of(snapshot.last_heartbeat_at),
        "last_heartbeat_age_seconds": moment.since(snapshot.last_heartbeat_at),
        "beats": session.sequence,
        "interval_seconds": session.interval_seconds,
        "next_attempt_at": moment.wall_of(session.next_attempt_at),
        "next_attempt_in_seconds": moment.until(session.next_attempt_at),
    }


def _status(snapshot: Snapshot, moment: Instant) -> dict[str, Any] | None:
    verdict = snapshot.session.registry_status
    if verdict is None:
        return None
    details = verdict.details
    return {
        "status": verdict.status,
        "reason": verdict.reason,
        "reason_code": verdict.reason_code,
        "since": verdict.since,
        "received_at": moment.wall_of(snapshot.status_received_at),
        "received_age_seconds": moment.since(snapshot.status_received_at),
        "current": snapshot.session.state in CONNECTED,
        "checks": [] if details is None else [check.model_dump() for check in details.checks],
        "in_flight_jobs": None if details is None else details.in_flight_jobs,
        "drain_deadline": None if details is None else details.drain_deadline,
        "clears_when": None if details is None else details.clears_when,
    }


def _drain(snapshot: Snapshot, moment: Instant) -> dict[str, Any] | None:
    session = snapshot.session
    if session.drain_reason is None:
        return None
    return {
        "reason": session.drain_reason,
        "over": session.state is State.DRAINED,
        "deadline_at": moment.wall_of(session.drain_until),
        "deadline_in_seconds": moment.until(session.drain_until),
    }


def _machine(snapshot: Snapshot) -> dict[str, Any] | None:
    """What the probe found last, as `gpu-agent probe --json` writes it, with how old it is."""
    inventory = snapshot.inventory
    if inventory is None:
        return None
    models = inventory.models
    if len(models) > MOST_MODELS:  # cut first: to write all of them down takes long
        models = tuple(sorted(models, key=lambda model: model.status is ModelStatus.READY)[:MOST_MODELS])
    return {
        **to_document(replace(inventory, models=models)),
        "probe_age_seconds": snapshot.probe_age_seconds,
        "models_found": len(inventory.models),
        "models_not_declared": list(snapshot.session.models_left_out)[:MOST_MODELS],
    }
