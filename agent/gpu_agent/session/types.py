"""What goes into the session machine and what comes out: events, actions, states, settings, the snapshot.

Events are in the past tense, actions in the imperative. All instants are monotonic seconds.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from gpu_agent.wire.declaration import Declaration, DeclarationChanges
from gpu_agent.wire.messages import FromRegistry, NodeError, NodeRegister, NodeStatusMessage, NodeUnregister

# What happens to a node's session, in the past tense.


@dataclass(frozen=True, slots=True)
class Started:
    """The agent is up and has read its identity; nothing is connected."""


@dataclass(frozen=True, slots=True)
class Declared:
    """The probe or the owner's configuration now says this; sent whenever it may have changed."""

    declaration: Declaration
    running_jobs: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class OwnerChanged:
    """The owner changed what only a registration tells, such as the endpoint; `Declared` follows (§3.1)."""


@dataclass(frozen=True, slots=True)
class FaultFound:
    """Something of the machine failed that belongs to no job, such as a GPU (§3.3)."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Connected:
    """The WebSocket is open."""


@dataclass(frozen=True, slots=True)
class ConnectFailed:
    """No WebSocket came of an attempt: refused, timed out, or answered with an HTTP status."""

    detail: str
    http_status: int | None = None
    retry_after_seconds: float | None = None
    lasting: bool = False
    """True where only a person can mend it: there is no haste."""


@dataclass(frozen=True, slots=True)
class MessageReceived:
    """The registry said something."""

    message: FromRegistry


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The WebSocket closed without a `Disconnect` of ours."""

    code: int | None
    detail: str


@dataclass(frozen=True, slots=True)
class StopRequested:
    """The process is to end: say goodbye and leave; with `drain`, after its jobs."""

    reason: str
    drain: bool = False
    deadline_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class DrainRequested:
    """The owner wants the machine emptied: no new jobs, offline after the last, and to stay so (§3.6)."""

    reason: str
    deadline_seconds: float | None = None
    """None leaves it to the registry."""


@dataclass(frozen=True, slots=True)
class ResumeRequested:
    """The owner takes the machine back: lifts a drain of his own, and has it register."""


@dataclass(frozen=True, slots=True)
class RefreshRequested:
    """The owner wants the machine probed again, and the registry told of all of it."""


OwnerRequest = DrainRequested | ResumeRequested | RefreshRequested
"""What the owner of the machine asks of the agent that runs on it."""

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


# What a session asks its shell to do, in the imperative, to be carried out in order.


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


@dataclass(frozen=True, slots=True)
class Disconnect:
    """Close the WebSocket, or give up opening it, and hear no more of it: no event of it follows."""

    code: int
    reason: str


@dataclass(frozen=True, slots=True)
class Send:
    """Send a message that is ready as it stands."""

    message: NodeRegister | NodeUnregister | NodeError


@dataclass(frozen=True, slots=True)
class SendHeartbeat:
    """Compose a beat from the newest reading and send it; the shell adds time and figures."""

    node_id: str
    sequence: int
    changed: DeclarationChanges
    knows_schemas: bool = False
    """True when the registry has named a schema: it is no older scheduler (§9)."""


@dataclass(frozen=True, slots=True)
class StoreIdentity:
    """Store the registry's verdict before anything else is sent."""

    node_id: str
    node_token: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class ArchiveIdentity:
    """Set the stored identity aside, keeping a copy for the operator."""

    node_id: str | None


@dataclass(frozen=True, slots=True)
class Probe:
    """Read the machine again now; the outcome comes back as `Declared`."""


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
    Connect | Disconnect | Send | SendHeartbeat | StoreIdentity | ArchiveIdentity | Probe | LogEvent | Exit
)


# The spans a session keeps to, in seconds. None of them is read from an environment here.


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionSettings:
    """How patient, how eager and how steady a session is."""

    backoff_first_seconds: float = 1.0
    backoff_ceiling_seconds: float = 60.0
    stability_seconds: float = 120.0
    """Registered for so long, a session forgets its earlier failures."""
    startup_jitter_seconds: float = 1.0
    """The first connection waits a random part of this, so that a fleet does not arrive as one."""
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
    """A change is told by a beat of its own, but never sooner than this after the last one."""
    refresh_patience_seconds: float = 5.0
    """How long a `refresh` waits for the probe before its full beat goes out."""
    register_again_guard_seconds: float = 10.0
    """A second order to register again within this backs off instead."""
    longest_retry_after_seconds: float = 3600.0
    drain_deadline_seconds: float = 600.0
    drain_grace_seconds: float = 5.0
    """How long past a drain's deadline the session waits for the registry's verdict."""


# What a session went through last, and the error that tells it.
#
# The hierarchy: `SessionError` (ours; no peer can cause one)
# ├ `IllegalEventError`: the shell broke its promise
# └ `NothingDeclaredError`: the machine broke its own (see `registration`).


_REMEMBERED = 32


class State(StrEnum):
    """Where a session stands."""

    IDLE = "idle"
    """Not started."""
    WAITING_GPU = "waiting_gpu"
    """Nothing connects until the probe declares a usable GPU."""
    BACKING_OFF = "backing_off"
    """Waiting to try again."""
    CONNECTING = "connecting"
    AWAITING_ACK = "awaiting_ack"
    """`node_register` is sent, its answer is not here."""
    REGISTERED = "registered"
    """Acknowledged and beating."""
    LEAVING = "leaving"
    """Asked to drain: still beating, waiting to be told `offline`."""
    YIELDED = "yielded"
    """A newer session holds the identity; this one does not fight."""
    DRAINED = "drained"
    """Emptied, as its owner asked; nothing connects until he resumes it."""
    STOPPED = "stopped"


STATE_PHRASES = {
    State.IDLE: "it has not begun",
    State.WAITING_GPU: "it waits for a GPU",
    State.BACKING_OFF: "it waits to try again",
    State.CONNECTING: "it connects",
    State.AWAITING_ACK: "it waits for the registry's answer",
    State.YIELDED: "a newer session has its id",
    State.DRAINED: "it is drained, as its owner asked",
    State.STOPPED: "it ends",
}
"""What a session does while the registry does not hear it, in words for people."""


class SessionError(Exception):
    """Base of what a session machine raises."""


class IllegalEventError(SessionError):
    """An event that cannot happen in this state; nothing was changed."""

    def __init__(self, event: object, story: str) -> None:
        super().__init__(f"{type(event).__name__} cannot happen now. The story so far:\n{story}")


class TransitionLog:
    """The last transitions, oldest first."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=_REMEMBERED)

    def record(self, now: float, move: tuple[State, State], cause: str) -> None:
        """Keep one transition, from and to."""
        self._lines.append(f"{now:.3f} {move[0]} → {move[1]}: {cause}")

    def __str__(self) -> str:
        return "\n".join(self._lines) or "nothing happened yet"


# A session as its owner may look at it: one frozen picture, for `status`.


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionSnapshot:
    """Where a session stands. Instants are monotonic seconds."""

    state: State
    node_id: str | None
    verdict: NodeStatusMessage | None
    """The status that the registry gave this node last, with its reason; None before the first ack."""
    next_attempt_at: float | None
    """When the session tries again, while it is backing off."""
    last_refusal: str | None
    """Why the last attempt failed, or no other is made, as a sentence; None once registered."""
    sequence: int
    """Number of the last beat sent."""
    interval_seconds: float | None
    """Between beats, while registered."""
    models_left_out: tuple[str, ...] = ()
    drain_reason: str | None = None
    """Why the owner wants the machine emptied; None where he does not."""
    drain_until: float | None = None
    """When that drain ends, whatever still runs."""
