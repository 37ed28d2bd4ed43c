"""What the fleet asks its shell to do: changes to store, and effects to carry out once they are stored (§4).

A step collects what one event leads to while it is handled; an output is what the shell gets of it. Times are
monotonic seconds; the shell writes them as wall time where the wire needs it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from gpu_agent.registry.dispatch.exclusions import NoAvailableNode
from gpu_agent.registry.job import Claim, HeldGrant
from gpu_agent.registry.node import NodeRecord
from gpu_agent.wire.codes import NodeStatus, ReasonCode
from gpu_agent.wire.messages import Check, NodeControl, NodeError, NodeRegisterAck


class Level(StrEnum):
    """The level at which an event is logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Send:
    """Send a message that is ready as it stands."""

    connection: int
    message: NodeRegisterAck | NodeError | NodeControl


@dataclass(frozen=True, slots=True, kw_only=True)
class SendStatus:
    """Send a node its status (§3.5); the shell adds wall times."""

    connection: int
    node_id: str
    status: NodeStatus
    reason_code: ReasonCode
    reason: str
    since: float
    previous_status: NodeStatus | None = None
    periodic: bool = False
    heartbeat_interval_seconds: float | None = None
    checks: tuple[Check, ...] = ()
    healthy_heartbeats: int = 0
    heartbeats_needed: int = 0
    in_flight_jobs: int = 0
    drain_deadline: float | None = None
    clears_when: str | None = None


@dataclass(frozen=True, slots=True)
class CloseConnection:
    """Close a connection with a WebSocket code; its end is reported as `ConnectionLost` like any other."""

    connection: int
    code: int
    reason: str


class DocumentKind(StrEnum):
    """The kinds of documents in the store."""

    NODE = "node"
    CLAIM = "claim"
    TOKEN = "token"  # noqa: S105 - the kind's name, no secret
    HELD = "held"
    """What an ended claim still holds on a node."""
    RECEIVER = "receiver"
    """How far a receiver of alarms is. The fleet does not know it; the shell reads and writes it."""


@dataclass(frozen=True, slots=True)
class Change:
    """One document to store; None deletes what is stored under the key."""

    kind: DocumentKind
    key: str
    document: Mapping[str, object] | None


@dataclass(frozen=True, slots=True)
class Refusal:
    """A request that cannot be granted: a code for programs, a sentence with the next step for people."""

    code: str
    message: str


Result = Claim | NoAvailableNode | Refusal | None


def as_refusal(result: Result) -> Refusal | None:
    """Return a refusal, or None where the request is done."""
    return result if isinstance(result, Refusal) else None


@dataclass(frozen=True, slots=True)
class Answer:
    """Answer a request; None means done."""

    ref: int
    result: Result


@dataclass(frozen=True, slots=True)
class LogEvent:
    """Log an event of §8 under its identifier; one with a `node_id` joins the node's history."""

    event: str
    fields: Mapping[str, object] = field(default_factory=dict)
    level: Level = Level.INFO


Effect = Send | SendStatus | CloseConnection | Answer | LogEvent


@dataclass(frozen=True, slots=True)
class Output:
    """What one event leads to.

    The shell stores `changes` together. It carries out `effects` in order, once these changes and those of
    every earlier output are stored. A save that fails is retried, never undone.
    """

    changes: tuple[Change, ...] = ()
    effects: tuple[Effect, ...] = ()
    number: int | None = None
    """Of an output with changes; grows by one each time. `Stored` confirms every number up to its own."""
    immediate: tuple[Answer | Send, ...] = ()
    """Answers that depend on nothing that is not stored: sent at once, before all effects that wait."""


NOTHING = Output()
"""What an ordinary heartbeat leads to."""


Key = tuple[DocumentKind, str]
"""Names one document."""

STATUS_CHANGED = "node_status_changed"


class Step:
    """The consequences of one event."""

    __slots__ = (
        "changed",
        "effects",
        "immediate",
        "logged",
        "node_tokens_issued",
        "now",
        "registered",
        "tokens_created",
        "touched",
        "trace_id",
    )

    def __init__(self, now: float, *, trace_id: str | None = None) -> None:
        self.now = now
        self.trace_id = trace_id
        """The trace of the request that led to this; None where there is none."""
        self.changed: dict[Key, tuple[str, ...]] = {}
        """The documents to write as they are at the end of the step, and the nodes that each is a part of."""
        self.logged: list[LogEvent] = []
        self.effects: list[Effect] = []
        """What to carry out once the changes are stored, after the events are logged."""
        self.immediate: list[Answer | Send] = []
        """Answers that depend on nothing that is not stored."""
        self.tokens_created: list[str] = []
        """Tokens whose text is sent with this step's answer, and to no one if that is not sent."""
        self.node_tokens_issued: list[tuple[NodeRecord, str]] = []
        """Nodes whose acknowledgement brings them another token, and its id."""
        self.registered: list[NodeRecord] = []
        """Nodes whose acknowledgement is among the effects."""
        self.touched: dict[str, None] = {}
        """Nodes whose deadline must be scheduled again."""

    def log(self, event: str, fields: Mapping[str, object], level: Level = Level.INFO) -> None:
        """Log an event, with the trace of its cause, once the changes are stored."""
        traced = fields if self.trace_id is None else {**fields, "trace_id": self.trace_id}
        self.logged.append(LogEvent(event, traced, level))

    def change_node(self, record: NodeRecord) -> None:
        """Store a node, or delete it where it is not known any more."""
        self.changed[(DocumentKind.NODE, record.node_id)] = (record.node_id,)
        self.touched[record.node_id] = None

    def change_claim(self, claim: Claim) -> None:
        """Store a job's claim, or delete it where it has ended."""
        self.changed[(DocumentKind.CLAIM, claim.job_id)] = tuple(grant.node_id for grant in claim.grants)

    def change_held(self, held: HeldGrant) -> None:
        """Store what an ended claim still holds on a node, or delete it where it holds nothing."""
        self.changed[(DocumentKind.HELD, held.key)] = (held.node_id,)

    def change_token(self, token_id: str) -> None:
        """Store a join or operator token, or delete it where it is not known any more."""
        self.changed[(DocumentKind.TOKEN, token_id)] = ()

    def answer(self, ref: int, result: Result = None) -> None:
        """Answer a request once the changes are stored."""
        self.effects.append(Answer(ref, result))

    def refuse(self, ref: int, code: str, message: str) -> None:
        """Refuse a request, once every change before it is stored."""
        self.effects.append(Answer(ref, Refusal(code, message)))


def said_by_operator(reason: str, by: str) -> dict[str, object]:
    """Return the fields of an event that say why an operator did it and who that was, as far as known."""
    return {name: said for name, said in (("reason", reason), ("by", by)) if said}


def unknown_node_message(node_id: str) -> str:
    """Return the sentence for an unknown node id, with the command that lists the known ones."""
    return f"no node {node_id!r} is known: `gpu-agent registry node list` lists them"


def unknown_token_message(token_id: str) -> str:
    """Return the sentence for an unknown token id, with the command that lists the known ones."""
    return f"no token {token_id!r} is known: `gpu-agent registry token list` lists them"
