"""What goes into the session machine and what comes out: events, actions, states, settings, the snapshot.

Events are in the past tense, actions in the imperative. All instants are monotonic seconds.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from gpu_agent.wire.declaration import Declaration, DeclarationChanges
from gpu_agent.wire.messages import (
    FromRegistry,
    NodeError,
    NodeRegister,
    NodeStatusMessage,
    NodeUnregister,
)


class State(StrEnum):
    """The state of a session."""

    IDLE = "idle"
    """Not started."""
    WAITING_GPU = "waiting_gpu"
    """The agent does not connect until the probe declares a usable GPU."""
    BACKING_OFF = "backing_off"
    """Waiting before the next attempt."""
    CONNECTING = "connecting"
    AWAITING_ACK = "awaiting_ack"
    """`node_register` is sent and not answered yet."""
    REGISTERED = "registered"
    """Acknowledged; heartbeats go out."""
    LEAVING = "leaving"
    """A stop that drains first: heartbeats still go out, until the registry says `offline`."""
    YIELDED = "yielded"
    """A newer session holds the identity, and this one does not fight it."""
    DRAINED = "drained"
    """Drained on the owner's request; the agent does not connect until the owner resumes it."""
    STOPPED = "stopped"


STATE_PHRASES: Mapping[State, str] = {
    State.IDLE: "it has not started yet",
    State.WAITING_GPU: "it waits for a GPU",
    State.BACKING_OFF: "it waits to try again",
    State.CONNECTING: "it connects",
    State.AWAITING_ACK: "it waits for the registry's answer",
    State.YIELDED: "a newer session has its id",
    State.DRAINED: "it is drained, on its owner's request",
    State.STOPPED: "it stops",
}
"""What the agent does in each state without a registration, for people."""


class SessionError(Exception):
    """Base of the exceptions of a session machine: always a fault of ours, never of a peer."""


class IllegalEventError(SessionError):
    """An event that cannot happen in this state; nothing was changed."""

    def __init__(self, event: object, transitions: str) -> None:
        super().__init__(f"{type(event).__name__} cannot happen now. The last transitions:\n{transitions}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionSettings:
    """Intervals, delays and timeouts of a session."""

    backoff_first_seconds: float = 1.0
    backoff_ceiling_seconds: float = 60.0
    stability_seconds: float = 120.0
    """A session that is registered for this long resets the backoff."""
    startup_jitter_seconds: float = 1.0
    """The first connection waits a random part of this, so that a fleet does not arrive at once."""
    ack_timeout_seconds: float = 10.0
    """No answer to `node_register` within this is a failed attempt (§3.3)."""
    heartbeat_interval_seconds: float = 15.0
    """Used when an ack names only the warm-up interval."""
    warmup_interval_seconds: float = 2.0
    """Used when an ack names only the steady interval."""
    fallback_interval_seconds: float = 10.0
    """Used always when the ack names neither: an older scheduler (§3.4)."""
    minimum_interval_seconds: float = 0.05
    maximum_interval_seconds: float = 3600.0
    change_heartbeat_seconds: float = 1.0
    """A change is sent by an early heartbeat, but not sooner than this after the last one."""
    refresh_patience_seconds: float = 5.0
    """How long a `refresh` waits for the probe before its full heartbeat goes out."""
    register_again_guard_seconds: float = 10.0
    """A second request to register again within this backs off instead."""
    longest_retry_after_seconds: float = 3600.0
    drain_deadline_seconds: float = 600.0
    drain_grace_seconds: float = 5.0
    """How long after a drain's deadline the session waits for the registry's status."""


# Events


@dataclass(frozen=True, slots=True)
class Started:
    """The agent is up and has read its identity; nothing is connected."""


@dataclass(frozen=True, slots=True)
class Declared:
    """The probe's result or the owner's configuration, sent whenever it may have changed."""

    declaration: Declaration
    running_jobs: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class OwnerChanged:
    """The owner changed what only a registration carries, such as the endpoint; `Declared` follows (§3.1)."""


@dataclass(frozen=True, slots=True)
class FaultFound:
    """Something on the machine failed that belongs to no job, such as a GPU (§3.3)."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Connected:
    """The WebSocket is open."""


@dataclass(frozen=True, slots=True)
class ConnectFailed:
    """An attempt to connect failed: refused, timed out, or answered with an HTTP status."""

    detail: str
    http_status: int | None = None
    retry_after_seconds: float | None = None
    lasting: bool = False
    """True where only a person can fix it: the retry can wait."""


@dataclass(frozen=True, slots=True)
class MessageReceived:
    """A message of the registry arrived."""

    message: FromRegistry


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The WebSocket closed without a `Disconnect` of ours."""

    code: int | None
    detail: str


@dataclass(frozen=True, slots=True)
class StopRequested:
    """The process is to end: unregister and leave; with `drain`, after its jobs."""

    reason: str
    drain: bool = False
    deadline_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class DrainRequested:
    """The owner drains the machine: no new jobs, offline after the last one, until resumed (§3.6)."""

    reason: str
    deadline_seconds: float | None = None
    """None leaves it to the registry."""


@dataclass(frozen=True, slots=True)
class ResumeRequested:
    """The owner resumes the machine: ends a drain of the owner's own, and registers."""


@dataclass(frozen=True, slots=True)
class RefreshRequested:
    """The owner requests a new probe, and a heartbeat with all of its result."""


OwnerRequest = DrainRequested | ResumeRequested | RefreshRequested
"""What the machine's owner requests of the agent that runs on it."""

Event = (
    Started
    | Declared
    | OwnerChanged
    | FaultFound
    | Connected
    | ConnectFailed
    | MessageReceived
    | Disconnected
    | StopRequested
    | OwnerRequest
)


# Actions


class Credential(StrEnum):
    """Which of the agent's credentials a handshake carries (§2)."""

    BEST = "best"
    """The node token if there is one, else the join token, else none."""
    JOIN = "join"
    """The join token: the node token was refused with 401."""


@dataclass(frozen=True, slots=True)
class Connect:
    """Open the WebSocket; the outcome comes back as `Connected` or `ConnectFailed`."""

    credential: Credential = Credential.BEST
    address: str = field(kw_only=True)
    """Which of the registry's addresses to connect to."""


@dataclass(frozen=True, slots=True)
class Disconnect:
    """Close the WebSocket, or stop opening it; no further event of it follows."""

    code: int
    reason: str


@dataclass(frozen=True, slots=True)
class Send:
    """Send a complete message."""

    message: NodeRegister | NodeUnregister | NodeError


@dataclass(frozen=True, slots=True)
class SendHeartbeat:
    """Compose a heartbeat from the newest reading and send it; the shell adds time and figures."""

    node_id: str
    sequence: int
    changed: DeclarationChanges
    knows_schemas: bool = False
    """True when the registry has named a schema: it is no older scheduler (§9)."""


@dataclass(frozen=True, slots=True)
class StoreIdentity:
    """Store the id and token that the registry assigned, before anything else is sent."""

    node_id: str
    node_token: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class ArchiveIdentity:
    """Move the stored identity aside, where the operator can find it."""

    node_id: str | None


@dataclass(frozen=True, slots=True)
class Probe:
    """Read the machine again now; the result comes back as `Declared`."""


@dataclass(frozen=True, slots=True)
class RunChecks:
    """Run the admission checks now; the results come back in `Declared`."""


@dataclass(frozen=True, slots=True)
class LogEvent:
    """Log an event under an identifier, with its fields."""

    event: str
    fields: Mapping[str, object] = field(default_factory=dict)
    problem: bool = False
    """True when an operator should look."""


@dataclass(frozen=True, slots=True)
class Exit:
    """End the process; `failed` when a person must act before it may run again."""

    reason: str
    failed: bool = False


Action = (
    Connect
    | Disconnect
    | Send
    | SendHeartbeat
    | StoreIdentity
    | ArchiveIdentity
    | Probe
    | RunChecks
    | LogEvent
    | Exit
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionSnapshot:
    """A session at one moment, for `status`."""

    state: State
    address: str
    """The registry's address of this connection, or of the next attempt."""
    node_id: str | None
    registry_status: NodeStatusMessage | None
    """The last status that the registry gave this node, with its reason; None before the first ack."""
    next_attempt_at: float | None
    """When the session connects again, while it is backing off."""
    last_refusal: str | None
    """Why the last attempt failed, or no other is made, as a sentence; None once registered."""
    sequence: int
    """Number of the last heartbeat."""
    interval_seconds: float | None
    """Between two heartbeats, while registered."""
    models_left_out: tuple[str, ...] = ()
    drain_reason: str | None = None
    """Why the owner drains the machine; None without such a drain."""
    drain_until: float | None = None
    """When that drain ends, whatever still runs."""
