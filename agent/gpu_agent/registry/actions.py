"""What the fleet asks its shell to do: changes to store, and effects to carry out once they are stored (§4).

Times are monotonic seconds; the shell writes them as wall time where the wire needs it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from gpu_agent.registry.dispatch.exclusions import NoAvailableNode
from gpu_agent.registry.job import Claim
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
    healthy_beats: int = 0
    beats_needed: int = 0
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


def unknown_node_message(node_id: str) -> str:
    """Return the sentence for an unknown node id, with the command that lists the known ones."""
    return f"no node {node_id!r} is known: `gpu-agent registry nodes` lists them"


def unknown_token_message(token_id: str) -> str:
    """Return the sentence for an unknown token id, with the command that lists the known ones."""
    return f"no token {token_id!r} is known: `gpu-agent registry token list` lists them"
