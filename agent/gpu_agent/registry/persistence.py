"""How a node, a claim and a token are serialized for the store, and loaded again after a restart (§4, restart).

The registry knows no wall time, so a document holds spans relative to the moment when it was written:
`…_in_seconds` ahead of it, `…_ago_seconds` before it. The shell stores that moment as wall time beside the document
and passes the document's age when it is loaded: deadlines then count the time while the registry was down. Figures of
heartbeats are not stored.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from math import inf
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import to_json

from gpu_agent.registry import declaration as declared
from gpu_agent.registry.actions import Change, DocumentKind, Level
from gpu_agent.registry.credentials import CredentialKind, NodeToken, NodeTokens, Role
from gpu_agent.registry.job import Claim
from gpu_agent.registry.node import Drain, NodeRecord, Transition
from gpu_agent.registry.settings import Thresholds
from gpu_agent.registry.status import House
from gpu_agent.registry.step import Key, Step
from gpu_agent.registry.tokens import Token
from gpu_agent.wire.codes import NodeStatus, ReasonCode
from gpu_agent.wire.messages import NodeRegister

# What the store keeps of a node, a claim and a token, as JSON-able documents, and back.
#
# The registry knows no wall time, so a document holds spans relative to the moment it was
# written: `…_in_seconds` ahead of it, `…_ago_seconds` behind it. The shell writes that one
# moment beside the document as wall time, and on the way back hands in the document's age:
# deadlines then count the time that the registry was away. Figures of beats are not kept.


@dataclass(frozen=True, slots=True)
class StoredDocument:
    """One kept document as the store gave it back."""

    kind: DocumentKind
    key: str
    document: Mapping[str, object]
    age_seconds: float
    """How long ago, in wall time, it was written; negative ages count as none."""


class UnreadableDocumentError(Exception):
    """A kept document is not one of ours: the machine's fault, or another version's."""

    def __init__(self, kind: DocumentKind, key: str, detail: str) -> None:
        self.kind, self.key, self.detail = kind, key, detail
        super().__init__(f"the kept {kind} {key!r} cannot be read ({detail}) and was left out")


class _Document(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class _DrainDocument(_Document):
    by_operator: bool
    deadline_in_seconds: float
    reason: str = ""


class _KeyDocument(_Document):
    token_id: str
    digest: str


class _KeysDocument(_Document):
    current: _KeyDocument | None = None
    following: tuple[_KeyDocument, ...] = ()
    rotating: bool = False
    joined_by: str | None = None
    spent: bool = True


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
    exits_ago_seconds: tuple[float, ...] = ()
    keys: _KeysDocument = _KeysDocument()
    granted_labels: dict[str, str] = {}


class _TokenDocument(_Document):
    token_id: str
    kind: CredentialKind
    digest: str
    created_ago_seconds: float
    expires_in_seconds: float | None = None
    revoked_ago_seconds: float | None = None
    note: str = ""
    uses: int | None = None
    spent: int = 0
    used_up_ago_seconds: float | None = None
    labels: dict[str, str] = {}
    node_id: str | None = None
    role: Role | None = None
    name: str = ""


class _ClaimDocument(_Document):
    job_id: str
    node_id: str
    gpu_uuids: tuple[str, ...]
    endpoint: str | None = None
    memory_mb: int = 0
    affinity_key: str | None = None
    granted_ago_seconds: float
    expires_in_seconds: float


def serialize_node(record: NodeRecord, now: float) -> dict[str, Any]:
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
        "exits_ago_seconds": [now - at for at in record.exits],
        "drain": drain
        and {
            "by_operator": drain.by_operator,
            "deadline_in_seconds": drain.deadline - now,
            "reason": drain.reason,
        },
        "keys": asdict(record.keys),
        "granted_labels": dict(record.granted_labels),
    }


def serialize_claim(claim: Claim, now: float) -> dict[str, Any]:
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


def serialize_token(token: Token, now: float) -> dict[str, Any]:
    """Write a join or operator token's document."""
    return {
        "token_id": token.token_id,
        "kind": token.kind.value,
        "digest": token.digest,
        "created_ago_seconds": now - token.created_at,
        "expires_in_seconds": None if token.expires_at is None else token.expires_at - now,
        "revoked_ago_seconds": None if token.revoked_at is None else now - token.revoked_at,
        "note": token.note,
        "uses": token.uses,
        "spent": token.spent,
        "used_up_ago_seconds": None if token.used_up_at is None else now - token.used_up_at,
        "labels": dict(token.labels),
        "node_id": token.node_id,
        "role": token.role and token.role.value,
        "name": token.name,
    }


def load_node(restored: StoredDocument, thresholds: Thresholds, now: float) -> NodeRecord:
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
        exits=tuple(written - ago for ago in kept.exits_ago_seconds),
        keys=_keys(kept.keys),
        granted_labels=kept.granted_labels,
    )
    declared.write_declaration(record, kept.registration, thresholds)
    return record


def load_token(restored: StoredDocument, now: float) -> Token:
    """Read a token back; what is left of its life counts the time that the registry was away."""
    written = now - max(0.0, restored.age_seconds)
    try:
        kept = _TokenDocument.model_validate_json(to_json(dict(restored.document)))
    except ValidationError as error:
        raise UnreadableDocumentError(restored.kind, restored.key, _first(error)) from None
    ends, ended, used_up = kept.expires_in_seconds, kept.revoked_ago_seconds, kept.used_up_ago_seconds
    return Token(
        token_id=kept.token_id,
        kind=kept.kind,
        digest=kept.digest,
        created_at=written - kept.created_ago_seconds,
        expires_at=None if ends is None else written + ends,
        revoked_at=None if ended is None else written - ended,
        note=kept.note,
        uses=kept.uses,
        spent=kept.spent,
        used_up_at=None if used_up is None else written - used_up,
        labels=kept.labels,
        node_id=kept.node_id,
        role=kept.role,
        name=kept.name,
    )


def load_claim(restored: StoredDocument, thresholds: Thresholds, now: float) -> Claim:
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


def _keys(kept: _KeysDocument) -> NodeTokens:
    return NodeTokens(
        current=None if kept.current is None else _key(kept.current),
        following=tuple(_key(one) for one in kept.following),
        rotating=kept.rotating,
        joined_by=kept.joined_by,
        spent=kept.spent,
    )


def _key(kept: _KeyDocument) -> NodeToken:
    return NodeToken(kept.token_id, kept.digest)


def _drain(kept: _DrainDocument, written: float) -> Drain:
    return Drain(
        by_operator=kept.by_operator, deadline=written + kept.deadline_in_seconds, reason=kept.reason
    )


def _first(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_context=False)[0]
    return f"{'.'.join(str(step) for step in first['loc']) or 'document'}: {first['msg']}"


# What the fleet keeps of each thing as it stands, and how it takes a kept thing back (§4, restart).
#
# How a document reads is `documents`'; when something is saved, `saves`'.


class Keeping:
    """Writes the house's documents, and fills the house from them."""

    def __init__(self, house: House) -> None:
        self._house = house

    def written(self, key: Key, now: float) -> Change:
        """Write the change that keeps one thing as it is now, or lets it go."""
        kind, name = key
        if kind is DocumentKind.CLAIM:
            claim = self._house.dispatch.claim_of(name)
            return Change(kind, name, None if claim is None else serialize_claim(claim, now))
        if kind is DocumentKind.TOKEN:
            token = self._house.tokens.by_id.get(name)
            return Change(kind, name, None if token is None else serialize_token(token, now))
        record = self._house.roster.records.get(name)
        return Change(kind, name, None if record is None else serialize_node(record, now))

    def taking_back(self, kept: Iterable[StoredDocument], now: float) -> Iterator[Step]:
        """Know again what was kept, thing by thing; what cannot be read is noted and left out."""
        # Claims stand on nodes, in whatever order the store gives them back.
        for one in sorted(kept, key=lambda one: one.kind is DocumentKind.CLAIM):
            step = Step(now)
            try:
                self._take_back(one, step)
            except UnreadableDocumentError as error:
                step.log("document_unreadable", {"detail": str(error)}, Level.WARNING)
            yield step

    def _take_back(self, kept: StoredDocument, step: Step) -> None:
        house = self._house
        if kept.kind is DocumentKind.NODE:
            record = load_node(kept, house.thresholds, step.now)
            house.roster.add(record)
            house.dispatch.refresh(record)
            step.touched[record.node_id] = None
        elif kept.kind is DocumentKind.TOKEN:
            house.tokens.put(load_token(kept, step.now))
        elif not house.claiming.restore(load_claim(kept, house.thresholds, step.now)):
            step.change_claim(kept.key)
