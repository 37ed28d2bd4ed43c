"""What the store keeps of a node and of a claim, as JSON-able documents, and back.

The registry knows no wall time, so a document holds spans relative to the moment it was
written: `…_in_seconds` ahead of it, `…_ago_seconds` behind it. The shell writes that one
moment beside the document as wall time, and on the way back hands in the document's age:
deadlines then count the time that the registry was away. Figures of beats are not kept.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import to_json

from gpu_agent.registry import declared
from gpu_agent.registry.actions import Kept
from gpu_agent.registry.job import Claim
from gpu_agent.registry.record import Drain, NodeRecord, Transition
from gpu_agent.registry.thresholds import Thresholds
from gpu_agent.wire.codes import NodeStatus, ReasonCode
from gpu_agent.wire.messages import NodeRegister


@dataclass(frozen=True, slots=True)
class Restored:
    """One kept document as the store gave it back."""

    kind: Kept
    key: str
    document: Mapping[str, object]
    age_seconds: float
    """How long ago, in wall time, it was written; negative ages count as none."""


class UnreadableDocumentError(Exception):
    """A kept document is not one of ours: the machine's fault, or another version's."""

    def __init__(self, kind: Kept, key: str, detail: str) -> None:
        self.kind, self.key, self.detail = kind, key, detail
        super().__init__(f"the kept {kind} {key!r} cannot be read ({detail}): remove it from the store")


class _Document(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class _DrainDocument(_Document):
    by_operator: bool
    deadline_in_seconds: float
    reason: str = ""


class _NodeDocument(_Document):
    node_id: str
    registration: NodeRegister
    status: NodeStatus
    previous_status: NodeStatus | None = None
    reason_code: ReasonCode
    reason: str = ""
    since_ago_seconds: float
    registered_ago_seconds: float
    epoch: int
    address: str | None = None
    interval_seconds: float
    cordoned: str | None = None
    drain: _DrainDocument | None = None


class _ClaimDocument(_Document):
    job_id: str
    node_id: str
    gpu_uuids: tuple[str, ...]
    endpoint: str | None = None
    memory_mb: int = 0
    affinity_key: str | None = None
    granted_ago_seconds: float
    expires_in_seconds: float


def of_node(record: NodeRecord, now: float) -> dict[str, Any]:
    """Write a node's document."""
    drain = record.drain
    return {
        "node_id": record.node_id,
        "registration": _written(record),
        "status": record.status.value,
        "previous_status": record.previous_status and record.previous_status.value,
        "reason_code": record.reason_code.value,
        "reason": record.reason,
        "since_ago_seconds": now - record.since,
        "registered_ago_seconds": now - record.registered_at,
        "epoch": record.epoch,
        "address": record.address,
        "interval_seconds": record.interval_seconds,
        "cordoned": record.cordoned,
        "drain": drain
        and {
            "by_operator": drain.by_operator,
            "deadline_in_seconds": drain.deadline - now,
            "reason": drain.reason,
        },
    }


def of_claim(claim: Claim, now: float) -> dict[str, Any]:
    """Write a claim's document."""
    return {
        "job_id": claim.job_id,
        "node_id": claim.node_id,
        "gpu_uuids": list(claim.gpu_uuids),
        "endpoint": claim.endpoint,
        "memory_mb": claim.memory_mb,
        "affinity_key": claim.affinity_key,
        "granted_ago_seconds": now - claim.granted_at,
        "expires_in_seconds": claim.expires_at - now,
    }


def node_from(restored: Restored, thresholds: Thresholds, now: float) -> NodeRecord:
    """Read a node back: its last status, disconnected, with one full timeout from now (§4)."""
    written = now - max(0.0, restored.age_seconds)
    try:
        kept = _NodeDocument.model_validate_json(to_json(dict(restored.document)))
    except ValidationError as error:
        raise UnreadableDocumentError(restored.kind, restored.key, _first(error)) from None
    since = written - kept.since_ago_seconds
    record = NodeRecord(
        node_id=kept.node_id,
        registration=kept.registration,
        hardware=kept.registration.hardware,
        registered_at=written - kept.registered_ago_seconds,
        status=kept.status,
        previous_status=kept.previous_status,
        reason_code=kept.reason_code,
        reason=kept.reason,
        since=since,
        story=(
            Transition(
                at=since, source=kept.previous_status, target=kept.status, reason_code=kept.reason_code
            ),
        ),
        epoch=kept.epoch,
        address=kept.address,
        interval_seconds=kept.interval_seconds,
        timeout_seconds=thresholds.node_timeout_seconds(kept.interval_seconds),
        heard_at=now,
        warmup_until=now + thresholds.warmup_timeout_seconds,
        next_status_at=inf,
        cordoned=kept.cordoned,
        drain=None if kept.drain is None else _drain(kept.drain, written),
    )
    declared.declare(record, kept.registration, thresholds)
    return record


def claim_from(restored: Restored, thresholds: Thresholds, now: float) -> Claim:
    """Read a claim back, with one fresh TTL from now (§4)."""
    try:
        kept = _ClaimDocument.model_validate_json(to_json(dict(restored.document)))
    except ValidationError as error:
        raise UnreadableDocumentError(restored.kind, restored.key, _first(error)) from None
    return Claim(
        job_id=kept.job_id,
        node_id=kept.node_id,
        gpu_uuids=kept.gpu_uuids,
        endpoint=kept.endpoint,
        granted_at=now - max(0.0, restored.age_seconds) - kept.granted_ago_seconds,
        expires_at=now + thresholds.claim_ttl_seconds,
        memory_mb=kept.memory_mb,
        affinity_key=kept.affinity_key,
    )


def _written(record: NodeRecord) -> dict[str, Any]:
    """Write a declaration once, however often the status of its node is saved."""
    if record.written is None or record.written[0] is not record.registration:
        record.written = (record.registration, record.registration.model_dump(mode="json"))
    return record.written[1]


def _drain(kept: _DrainDocument, written: float) -> Drain:
    return Drain(
        by_operator=kept.by_operator, deadline=written + kept.deadline_in_seconds, reason=kept.reason
    )


def _first(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_context=False)[0]
    return f"{'.'.join(str(step) for step in first['loc']) or 'document'}: {first['msg']}"
