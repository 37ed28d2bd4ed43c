"""The answer to `status`: how the agent, its session, its GPUs, models and jobs stand, as one document.

Instants become Unix times and ages, unknown is null. What the registry said last is told as what it
is: its word, with its age, which may be old while it is away. It judges nothing.
"""

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from gpu_agent.node.course import CONNECTED
from gpu_agent.node.picture import Picture
from gpu_agent.node.socket.jobs import Announced
from gpu_agent.probe.snapshot import to_document
from gpu_agent.session.story import State
from gpu_agent.version import __version__
from gpu_agent.wire.codes import NodeStatus
from gpu_agent.wire.inventory import ModelStatus

SCHEMA = "gpu-agent.status/1"
MOST_MODELS = 2000
"""Of more, the ones that cannot serve are told before the others; how many there are is told anyway."""


@dataclass(frozen=True, slots=True)
class Moment:
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


def status(
    picture: Picture, jobs: Sequence[Announced], *, announced: bool, started_at: float, moment: Moment
) -> dict[str, Any]:
    """Make the document. `announced`: whether any program here has ever announced a job."""
    session = picture.session
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
        "ready": is_ready(picture),
        "session": _session(picture, moment),
        "status": _verdict(picture, moment),
        "drain": _drain(picture, moment),
        "accept_public_jobs": picture.public_jobs.accepted,
        "public_jobs": {
            "wanted": picture.public_jobs.wanted,
            "pauses": [
                {"limit": pause.limit.value, "detail": pause.detail} for pause in picture.public_jobs.pauses
            ],
        },
        "max_concurrent_jobs": picture.owner.max_concurrent_jobs,
        "labels": dict(picture.owner.labels),
        "jobs": {"announced": announced, "in_flight": [job.document() for job in jobs]},
        "machine": _machine(picture),
    }


def is_ready(picture: Picture) -> bool:
    """Whether the registry hears this node and has said last that it is ready."""
    verdict = picture.session.verdict
    return picture.session.state in CONNECTED and verdict is not None and verdict.status == NodeStatus.READY


def _session(picture: Picture, moment: Moment) -> dict[str, Any]:
    session = picture.session
    return {
        "registry": picture.registry_url,
        "state": session.state.value,
        "since": moment.wall_of(picture.state_since),
        "link_since": moment.wall_of(picture.link_since),
        "why": None if session.state is State.REGISTERED else session.last_refusal,
        "last_beat_at": moment.wall_of(picture.last_beat_at),
        "last_beat_age_seconds": moment.since(picture.last_beat_at),
        "beats": session.sequence,
        "interval_seconds": session.interval_seconds,
        "next_attempt_at": moment.wall_of(session.next_attempt_at),
        "next_attempt_in_seconds": moment.until(session.next_attempt_at),
    }


def _verdict(picture: Picture, moment: Moment) -> dict[str, Any] | None:
    verdict = picture.session.verdict
    if verdict is None:
        return None
    details = verdict.details
    return {
        "status": verdict.status,
        "reason": verdict.reason,
        "reason_code": verdict.reason_code,
        "since": verdict.since,
        "told_at": moment.wall_of(picture.verdict_at),
        "told_age_seconds": moment.since(picture.verdict_at),
        "current": picture.session.state in CONNECTED,
        "checks": [] if details is None else [check.model_dump() for check in details.checks],
        "in_flight_jobs": None if details is None else details.in_flight_jobs,
        "drain_deadline": None if details is None else details.drain_deadline,
        "clears_when": None if details is None else details.clears_when,
    }


def _drain(picture: Picture, moment: Moment) -> dict[str, Any] | None:
    session = picture.session
    if session.drain_reason is None:
        return None
    return {
        "reason": session.drain_reason,
        "over": session.state is State.DRAINED,
        "deadline_at": moment.wall_of(session.drain_until),
        "deadline_in_seconds": moment.until(session.drain_until),
    }


def _machine(picture: Picture) -> dict[str, Any] | None:
    """What the probe found last, as `gpu-agent probe --json` writes it, with how old it is."""
    inventory = picture.inventory
    if inventory is None:
        return None
    models = inventory.models
    if len(models) > MOST_MODELS:  # cut first: to write all of them down takes long
        models = tuple(sorted(models, key=lambda model: model.status is ModelStatus.READY)[:MOST_MODELS])
    return {
        **to_document(replace(inventory, models=models)),
        "probe_age_seconds": picture.probe_age_seconds,
        "models_found": len(inventory.models),
        "models_not_declared": list(picture.session.models_left_out)[:MOST_MODELS],
    }
