"""What the store holds of nodes, claims and tokens, how it is loaded, and what is not stored yet (§4).

The registry knows no wall time, so a document holds spans relative to the moment when it was written:
`…_in_seconds` ahead of it, `…_ago_seconds` before it. The shell stores that moment as wall time beside the
document and passes the document's age when it is loaded: deadlines then count the time while the registry was
down. Figures of heartbeats are not stored.

The registry decides by a change at once, but sends nothing that depends on it before it is stored. A save
that fails is never undone: the shell retries the newest document of each key until the store holds it. The
requests that wait for a failing store are refused with `REGISTRY_BUSY`. So the registry deletes what nobody
received: a new token whose text was not sent, and the record of a new node that was not acknowledged.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from enum import StrEnum
from math import inf
from operator import attrgetter
from typing import Annotated, Any, TypeVar, assert_never

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo
from pydantic_core import to_json

from gpu_agent.registry import declaration
from gpu_agent.registry.actions import (
    Answer,
    Change,
    CloseConnection,
    DocumentKind,
    Key,
    Level,
    Refusal,
    Send,
    Step,
)
from gpu_agent.registry.dispatch.dispatch import Dispatch
from gpu_agent.registry.gpus import Gpus
from gpu_agent.registry.job import Claim, ClaimEnd, Grant, HeldGrant, Job
from gpu_agent.registry.node import (
    Declared,
    DesiredState,
    Drain,
    GpuCordon,
    Liveness,
    NodeRecord,
    NodeTable,
    Schedule,
    Transition,
)
from gpu_agent.registry.quoting import clip_quote, clip_sentence
from gpu_agent.registry.settings import Thresholds
from gpu_agent.registry.tokens import CredentialKind, NodeToken, NodeTokens, Role, Token, TokenTable
from gpu_agent.wire.codes import ErrorCode, NodeStatus, ReasonCode
from gpu_agent.wire.messages import NodeError, NodeRegister, NodeRegisterAck

RESTART_SECONDS = 5.0
"""A store that gave no answer for so long and answers again counts as a restart of the registry (§4)."""

BUSY_RETRY_SECONDS = 5.0

_Effect = TypeVar("_Effect")


@dataclass(frozen=True, slots=True)
class StoredDocument:
    """One document as the store returned it."""

    kind: DocumentKind
    key: str
    document: Mapping[str, object]
    age_seconds: float
    """How long ago, in wall time, it was written; negative ages count as none."""
    prepared: "PreparedNode | None" = None
    """What was read of a node's document before; then `document` is not looked at."""


class UnreadableDocumentError(Exception):
    """A stored document that this version did not write: a damaged one, or another version's."""

    def __init__(self, kind: DocumentKind, key: str, detail: str) -> None:
        self.kind, self.key, self.detail = kind, key, detail
        super().__init__(f"the stored {kind} {key!r} cannot be read ({detail}) and was left out")


class Documents:
    """Writes the documents of nodes, claims and tokens as they are, and loads them."""

    def __init__(
        self, thresholds: Thresholds, nodes: NodeTable, tokens: TokenTable, *, dispatch: Dispatch
    ) -> None:
        self._thresholds = thresholds
        self._nodes = nodes
        self._tokens = tokens
        self._dispatch = dispatch

    def change_of(self, key: Key, now: float) -> Change:
        """Write the change that stores one thing as it is now, or deletes it."""
        kind, name = key
        if kind is DocumentKind.CLAIM:
            claim = self._dispatch.claim_of(name)
            return Change(kind, name, None if claim is None else serialize_claim(claim, now))
        if kind is DocumentKind.HELD:
            held = self._dispatch.held_at(name)
            return Change(kind, name, None if held is None else serialize_held(held, now))
        if kind is DocumentKind.TOKEN:
            token = self._tokens.by_id.get(name)
            return Change(kind, name, None if token is None else serialize_token(token, now))
        record = self._nodes.records.get(name)
        return Change(kind, name, None if record is None else serialize_node(record, now))

    def load_each(self, documents: Iterable[StoredDocument], now: float) -> Iterator[Step]:
        """Load what was stored, one by one; a document that cannot be read is logged and left out."""
        # A claim needs its nodes, and the store returns documents in any order.
        for one in sorted(documents, key=lambda one: one.kind in (DocumentKind.CLAIM, DocumentKind.HELD)):
            step = Step(now)
            try:
                self._load(one, step)
            except UnreadableDocumentError as error:
                step.log("document_unreadable", {"detail": str(error)}, Level.WARNING)
            yield step

    def _load(self, stored: StoredDocument, step: Step) -> None:
        match stored.kind:
            case DocumentKind.NODE:
                record = load_node(stored, self._thresholds, step.now, step=step)
                self._nodes.add_stored(record)
                self._tokens.put_node(record.node_id, record.tokens)
                self._dispatch.update(record)
                step.touched[record.node_id] = None
            case DocumentKind.TOKEN:
                self._tokens.put(load_token(stored, step.now))
            case DocumentKind.CLAIM:
                claim = load_claim(stored, step.now)
                if self._dispatch.attach(claim) is None:
                    self._lose(claim, step)
            case DocumentKind.HELD:
                held = load_held(stored, step.now, step=step)
                if not self._dispatch.hold(held):
                    step.change_held(held)
            case DocumentKind.RECEIVER:
                pass  # the shell has read it
            case _ as unreachable:
                assert_never(unreachable)

    def _lose(self, claim: Claim, step: Step) -> None:
        """End a claim as lost, since one of its nodes was not stored or cannot be read (§5.3)."""
        step.change_claim(claim)
        for held in self._dispatch.hold_lost(claim, step.now):
            step.change_held(held)
        for grant in claim.grants:
            fields = {
                "job_id": claim.job_id,
                "node_id": grant.node_id,
                "claim_id": claim.claim_id,
                "reason_code": ReasonCode.REMOVED.value,
            }
            step.log("claim_lost", fields, Level.WARNING)


class UnstoredChanges:
    """Numbers the outputs that change documents, and knows which of them the store has confirmed."""

    def __init__(self) -> None:
        self.store_fails = False
        """True from a failed save until all that waits is stored: then no deadline is decided."""
        self.problem = ""
        """Why the store fails."""
        self._number = 0
        self._keys: dict[Key, tuple[int, tuple[str, ...]]] = {}
        """By document: the last output that changes it, in their order, and the nodes that it is part of."""
        self._of_node: dict[str, int] = {}
        """By node: how many of these documents are part of it."""
        self._unsent: deque[tuple[int, Step]] = deque()
        """The outputs whose answers bring somebody a token or an acknowledgement, and were not sent yet."""

    def holds(self, key: Key) -> bool:
        """Say whether the newest form of a document is not stored."""
        return key in self._keys

    def holds_part_of(self, node_id: str) -> bool:
        """Say whether a node, or a claim that it holds or held, is not stored as it is now."""
        return node_id in self._of_node

    def add(self, step: Step) -> int:
        """Number the output of a step that changes something."""
        self._number += 1
        for key, node_ids in step.changed.items():
            self._drop(key)
            self._keys[key] = (self._number, node_ids)
            for node_id in node_ids:
                self._of_node[node_id] = self._of_node.get(node_id, 0) + 1
        if step.tokens_created or step.node_tokens_issued or step.registered:
            self._unsent.append((self._number, step))
        return self._number

    def confirm(self, number: int) -> None:
        """Record that every output up to this one is stored, and its effects are carried out."""
        stored = []
        for key, (last, _) in self._keys.items():
            if last > number:
                break
            stored.append(key)
        for key in stored:
            self._drop(key)
        while self._unsent and self._unsent[0][0] <= number:
            for record in self._unsent.popleft()[1].registered:
                record.acknowledged = True

    def fail(self, problem: str) -> list[Step]:
        """Record that no waiting request is answered; returns the steps whose tokens no one knows of."""
        self.store_fails, self.problem = True, problem
        unsent = [step for _, step in self._unsent]
        self._unsent.clear()
        return unsent

    def _drop(self, key: Key) -> None:
        _, node_ids = self._keys.pop(key, (0, ()))
        for node_id in node_ids:
            left = self._of_node.pop(node_id) - 1
            if left:
                self._of_node[node_id] = left

    def recover(self) -> None:
        """Record that all that waited is stored."""
        self.store_fails, self.problem = False, ""

    def refusal(self) -> Refusal:
        """Refuse a request that would change something while the store fails."""
        message = (
            "the registry cannot store anything at the moment, and has changed nothing: send the same "
            "request again in a moment"
        )
        return Refusal(ErrorCode.REGISTRY_BUSY, clip_sentence(f"{message}; {self.problem}"))


def split_answers(effects: Sequence[_Effect], problem: str) -> tuple[list[Answer | Send], list[_Effect]]:
    """Refuse every request that waits for one of these effects, because the store fails.

    Returns the refusals and the other effects. A refusal with `REGISTRY_BUSY` replaces each answer to an
    operator, and each acknowledgement or error to a node. It does not replace the last message on a
    connection that is closed with it: that node waits for no answer.
    """
    closed = {effect.connection for effect in effects if isinstance(effect, CloseConnection)}
    refusals: list[Answer | Send] = []
    rest: list[_Effect] = []
    for effect in effects:
        match effect:
            case Answer(ref):
                refusals.append(Answer(ref, _outcome_unknown(problem)))
            case Send(connection, NodeRegisterAck() | NodeError() as message) if connection not in closed:
                refusals.append(Send(connection, busy_error(message.node_id)))
            case _:
                rest.append(effect)
    return refusals, rest


def busy_error(node_id: str | None) -> NodeError:
    """Ask a node to register again in a moment, without the reason why the store fails."""
    return NodeError(
        node_id=node_id,
        code=ErrorCode.REGISTRY_BUSY,
        message="the registry cannot store this registration at the moment: register again in a moment",
        retry_after_seconds=BUSY_RETRY_SECONDS,
    )


_JOB_FIELDS = tuple(one.name for one in fields(Job) if one.name != "wait_seconds")
"""What is stored of a job: one that has its claim waits no more."""
_GRANT_FIELDS = Grant._fields
_job_values = attrgetter(*_JOB_FIELDS)
_grant_values = attrgetter(*_GRANT_FIELDS)


class _Document(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


def _read_unknown_as(fallback: StrEnum) -> BeforeValidator:
    """Read a word of a later version, which this one does not know, as one that is safe, and say so."""
    known = {one.value for one in type(fallback)}

    def read(word: object, info: ValidationInfo) -> object:
        if not isinstance(word, str) or word in known:
            return word
        if info.context is not None:
            info.context.append((info.field_name, word, fallback.value))
        return fallback

    return BeforeValidator(read)


_Status = Annotated[NodeStatus, _read_unknown_as(NodeStatus.DEGRADED)]
"""A node of an unknown status takes no new job, keeps its claims, and proves itself again."""


class _DrainDocument(_Document):
    by_operator: bool
    deadline_in_seconds: float
    reason: str = ""


class _GpuCordonDocument(_Document):
    reason: str = ""
    by: str = ""


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
    status: _Status
    previous_status: _Status | None = None
    reason_code: Annotated[ReasonCode, _read_unknown_as(ReasonCode.HEALTH_CHECKS_FAILED)]
    reason: str = ""
    since_ago_seconds: float
    registered_ago_seconds: float
    epoch: int
    registered_on: int | None = None
    address: str | None = None
    interval_seconds: float
    cordoned: str | None = None
    drain: _DrainDocument | None = None
    gpu_cordons: dict[str, _GpuCordonDocument] = {}
    exits_ago_seconds: tuple[float, ...] = ()
    keys: _KeysDocument = _KeysDocument()
    issued_in: int | None = None
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
    parent: str | None = None


class _ClaimDocument(_Document):
    claim_id: str
    job: Job
    owner: str | None = None
    grants: Annotated[tuple[Grant, ...], Field(min_length=1)]
    ttl_seconds: float
    granted_ago_seconds: float


class _HeldDocument(_Document):
    claim: _ClaimDocument
    node_id: str
    gpu_uuids: tuple[str, ...] = ()
    end: Annotated[ClaimEnd, _read_unknown_as(ClaimEnd.EXPIRED)]
    ended_ago_seconds: float


def serialize_node(record: NodeRecord, now: float) -> dict[str, Any]:
    """Write a node's document."""
    drain = record.desired.drain
    return {
        "node_id": record.node_id,
        "registration": {**record.declared.registration.as_json(), **record.declared.models.as_json()},
        "status": record.status.value,
        "previous_status": record.previous_status and record.previous_status.value,
        "reason_code": record.reason_code.value,
        "reason": record.reason,
        "since_ago_seconds": now - record.since,
        "registered_ago_seconds": now - record.registered_at,
        "epoch": record.epoch,
        "registered_on": record.registered_on,
        "address": record.address,
        "interval_seconds": record.schedule.interval_seconds,
        "cordoned": record.desired.cordoned,
        "gpu_cordons": {uuid: asdict(one) for uuid, one in record.desired.gpu_cordons.items()},
        "exits_ago_seconds": [now - at for at in record.exits],
        "drain": drain
        and {
            "by_operator": drain.by_operator,
            "deadline_in_seconds": drain.deadline - now,
            "reason": drain.reason,
        },
        "keys": _serialize_keys(record.tokens),
        "issued_in": record.issued_in,
        "granted_labels": dict(record.granted_labels),
    }


def _serialize_keys(tokens: NodeTokens) -> dict[str, Any]:
    return {
        "current": tokens.current and _serialize_key(tokens.current),
        "following": tuple(_serialize_key(one) for one in tokens.following),
        "rotating": tokens.rotating,
        "joined_by": tokens.joined_by,
        "spent": tokens.spent,
    }


def _serialize_key(token: NodeToken) -> dict[str, str]:
    return {"token_id": token.token_id, "digest": token.digest}


def serialize_claim(claim: Claim, now: float) -> dict[str, Any]:
    """Write a claim's document."""
    return {
        "claim_id": claim.claim_id,
        "job": dict(zip(_JOB_FIELDS, _job_values(claim.job), strict=True))
        | {"labels": dict(claim.job.labels)},
        "owner": claim.owner,
        "grants": [dict(zip(_GRANT_FIELDS, _grant_values(one), strict=True)) for one in claim.grants],
        "ttl_seconds": claim.ttl_seconds,
        "granted_ago_seconds": now - claim.granted_at,
    }


def serialize_held(held: HeldGrant, now: float) -> dict[str, Any]:
    """Write the document of what an ended claim still holds on a node, without its other nodes."""
    grants = tuple(one for one in held.claim.grants if one.node_id == held.node_id)
    return {
        "claim": serialize_claim(replace(held.claim, grants=grants), now),
        "node_id": held.node_id,
        "gpu_uuids": list(held.gpu_uuids),
        "end": held.end.value,
        "ended_ago_seconds": now - held.ended_at,
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
        **({} if token.parent is None else {"parent": token.parent}),
    }


@dataclass(frozen=True, slots=True)
class PreparedNode:
    """What a node's document says, read ahead of a takeover: half of what loading the node takes.

    For one fleet, whose own its GPUs are then.
    """

    document: "_NodeDocument"
    declared: Declared
    gpus: Gpus
    unknown: "_Unknown"


def prepare_node(stored: StoredDocument, thresholds: Thresholds) -> PreparedNode:
    """Read a node's document for a later `load_node`; raises `UnreadableDocumentError`."""
    unknown: _Unknown = []
    document = _read(_NodeDocument, stored, unknown)
    declared = declaration.derive(document.registration, document.granted_labels, thresholds)
    bare = document.model_copy(update={"registration": declared.registration})  # its models are text there
    return PreparedNode(bare, declared, declaration.gpus_of(declared.registration.hardware), unknown)


def load_node(
    stored: StoredDocument, thresholds: Thresholds, now: float, *, step: Step | None = None
) -> NodeRecord:
    """Read a node: its last status, disconnected, with one full timeout from now (§4)."""
    written = now - max(0.0, stored.age_seconds)
    prepared = stored.prepared or prepare_node(stored, thresholds)
    _log_unknown(stored, prepared.unknown, step)
    document = prepared.document
    since, drain = written - document.since_ago_seconds, document.drain
    last = Transition(
        at=since,
        source=document.previous_status,
        target=document.status,
        reason_code=document.reason_code,
    )
    return NodeRecord(
        node_id=document.node_id,
        declared=prepared.declared,
        gpus=prepared.gpus,
        registered_at=written - document.registered_ago_seconds,
        status=document.status,
        previous_status=document.previous_status,
        reason_code=document.reason_code,
        reason=document.reason,
        since=since,
        history=(last,),
        exits=tuple(written - ago for ago in document.exits_ago_seconds),
        epoch=document.epoch,
        registered_on=document.registered_on,
        address=document.address,
        liveness=Liveness(
            last_seen_at=now, session_began_at=now, warmup_until=now + thresholds.warmup_timeout_seconds
        ),
        schedule=Schedule(
            interval_seconds=document.interval_seconds,
            timeout_seconds=thresholds.node_timeout_seconds(document.interval_seconds),
            next_status_at=inf,
        ),
        desired=DesiredState(
            cordoned=document.cordoned,
            drain=None if drain is None else _drain(drain, written),
            gpu_cordons={
                uuid: GpuCordon(reason=one.reason, by=one.by) for uuid, one in document.gpu_cordons.items()
            },
        ),
        tokens=_node_tokens(document.keys),
        issued_in=document.issued_in,
        granted_labels=document.granted_labels,
    )


def load_token(stored: StoredDocument, now: float) -> Token:
    """Read a token; what is left of its life counts the time while the registry was down."""
    written = now - max(0.0, stored.age_seconds)
    document = _validated(_TokenDocument, stored)
    ends, ended, used_up = (
        document.expires_in_seconds,
        document.revoked_ago_seconds,
        document.used_up_ago_seconds,
    )
    return Token(
        token_id=document.token_id,
        kind=document.kind,
        digest=document.digest,
        created_at=written - document.created_ago_seconds,
        expires_at=None if ends is None else written + ends,
        revoked_at=None if ended is None else written - ended,
        note=document.note,
        uses=document.uses,
        spent=document.spent,
        used_up_at=None if used_up is None else written - used_up,
        labels=document.labels,
        node_id=document.node_id,
        role=document.role,
        name=document.name,
        parent=document.parent,
    )


def load_claim(stored: StoredDocument, now: float) -> Claim:
    """Read a claim, with one fresh TTL of its own from now (§4)."""
    document = _validated(_ClaimDocument, stored)
    return _claim(document, now - max(0.0, stored.age_seconds), expires_at=now + document.ttl_seconds)


def load_held(stored: StoredDocument, now: float, *, step: Step | None = None) -> HeldGrant:
    """Read what an ended claim still holds on a node."""
    document = _validated(_HeldDocument, stored, step)
    written = now - max(0.0, stored.age_seconds)
    ended_at = written - document.ended_ago_seconds
    return HeldGrant(
        claim=_claim(document.claim, written, expires_at=ended_at),
        node_id=document.node_id,
        gpu_uuids=document.gpu_uuids,
        end=document.end,
        ended_at=ended_at,
    )


def _claim(document: _ClaimDocument, written: float, *, expires_at: float) -> Claim:
    return Claim(
        claim_id=document.claim_id,
        job=document.job,
        owner=document.owner,
        grants=document.grants,
        granted_at=written - document.granted_ago_seconds,
        expires_at=expires_at,
        ttl_seconds=document.ttl_seconds,
    )


_Model = TypeVar("_Model", bound=_Document)
_Unknown = list[tuple[str, str, str]]
"""Words that this version does not know: the field, the word, and as what it was read."""


def _validated(model: type[_Model], stored: StoredDocument, step: Step | None = None) -> _Model:
    """Read a document, and log in `step` the words that this version does not know."""
    unknown: _Unknown = []
    document = _read(model, stored, unknown)
    _log_unknown(stored, unknown, step)
    return document


def _read(model: type[_Model], stored: StoredDocument, unknown: _Unknown) -> _Model:
    try:
        return model.model_validate_json(to_json(dict(stored.document)), context=unknown)
    except ValidationError as error:
        raise UnreadableDocumentError(stored.kind, stored.key, _first(error)) from None


def _log_unknown(stored: StoredDocument, unknown: _Unknown, step: Step | None) -> None:
    if step is not None:
        name = f"{stored.kind} {stored.key!r}"
        for field, word, read_as in unknown:
            found = {"document": name, "field": field, "word": clip_quote(word), "read_as": read_as}
            step.log("document_word_unknown", found, Level.WARNING)


def _node_tokens(document: _KeysDocument) -> NodeTokens:
    return NodeTokens(
        current=None if document.current is None else _node_token(document.current),
        following=tuple(_node_token(one) for one in document.following),
        rotating=document.rotating,
        joined_by=document.joined_by,
        spent=document.spent,
    )


def _node_token(document: _KeyDocument) -> NodeToken:
    return NodeToken(document.token_id, document.digest)


def _drain(document: _DrainDocument, written: float) -> Drain:
    return Drain(
        by_operator=document.by_operator,
        deadline=written + document.deadline_in_seconds,
        reason=document.reason,
    )


def _first(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_context=False)[0]
    return f"{'.'.join(str(step) for step in first['loc']) or 'document'}: {first['msg']}"


def _outcome_unknown(problem: str) -> Refusal:
    message = "the outcome is not known yet: send the same request again"
    return Refusal(ErrorCode.REGISTRY_BUSY, clip_sentence(f"{message}; {problem}"))
