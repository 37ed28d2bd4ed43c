"""What happens to the fleet, in the past tense.

Connections are numbers that the shell assigns. `ref` names a request that waits for an `Answer`; the shell
draws it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from gpu_agent.registry.job import Job
from gpu_agent.registry.tokens import Credential, FreshToken, Role
from gpu_agent.wire.heartbeat import Heartbeat
from gpu_agent.wire.messages import NodeError, NodeRegister, NodeUnregister


@dataclass(frozen=True, slots=True)
class RegistrationReceived:
    """A node declared itself on a connection."""

    connection: int
    message: NodeRegister
    fresh_id: str
    """An id drawn by the shell, used when the node suggests none; where it does, that one."""
    credential: Credential | None = None
    """What the connection presented at its handshake; None with auth off."""
    address: str | None = None
    fresh_token: FreshToken | None = None
    """Drawn by the shell for this registration, sent in the ack if issued; None with auth off."""
    round_trip_seconds: float | None = None
    """Of the connection's network; None where it is not measured."""
    frame_bytes: int | None = None
    """The length of the frame that it came in; None where that is not known."""
    is_inherited: bool = False
    """The connection was numbered by an earlier leader, or by this one before the link ended: a registration
    there may be stored and its answer lost, and the gateway then repeats it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionReported:
    """A gateway holds the connection of a session that it reports to a leader which does not know of it.

    Behind the report the gateway hands on the node's last heartbeat, once: as `HeartbeatReceived`, with its
    age, and with all parts that the node replaced since it registered (`Heartbeat.with_parts_of`). Then it
    repeats what was not answered: a `node_register`, and a `node_unregister` behind which no status came.
    """

    connection: int
    """As an earlier leader, or this one before the link ended, numbered it: over all leaders the number of a
    newer connection is higher."""
    node_id: str
    session_epoch: int
    """Of the newest acknowledgement that went to the node."""
    credential: Credential | None
    """What the connection presented at its handshake; None with auth off."""
    address: str | None
    heartbeat_age_seconds: float | None
    """None before the first heartbeat of the session."""
    is_complete: bool
    """False where the gateway cannot hand on all that the node declared since it registered, and an earlier
    leader may not have stored."""


class HeartbeatReceived(NamedTuple):
    """A heartbeat arrived. A tuple: made once per heartbeat, on the hottest path."""

    connection: int
    message: Heartbeat
    round_trip_seconds: float | None = None
    """Of the connection's network, where it was measured since the last heartbeat."""
    age_seconds: float = 0.0
    """How long ago it came, where a gateway hands it on once more."""


class Amounts(NamedTuple):
    """What varies all the time, and decides by how much alone: a node's load, and the memory in use."""

    cpu_percent: float
    mem_percent: float
    gpu_percent: float | None
    gpu_mem_percent: float | None
    memory_used_mb: tuple[int, ...] | None
    """By GPU, in the order of the last heartbeat; None where it had no figures of GPUs."""


@dataclass(slots=True)
class HeartbeatRepeated:
    """A heartbeat arrived that says what the node's last one said. Not frozen, as `HeartbeatReceived`."""

    connection: int
    age_seconds: float
    """How long ago it came."""
    probe_age_seconds: float | None
    """Its own: how old its GPU reading was when it was sent."""
    amounts: Amounts | None = None
    """Its own, where they differ; the rest is the last one's."""


@dataclass(frozen=True, slots=True)
class FiguresFetched:
    """The exact figures of a heartbeat that was counted before."""

    connection: int
    message: Heartbeat


@dataclass(frozen=True, slots=True)
class FaultReported:
    """A node reported an internal fault that belongs to no job."""

    connection: int
    message: NodeError


@dataclass(frozen=True, slots=True)
class UnregistrationReceived:
    """A node announced its shutdown."""

    connection: int
    message: NodeUnregister


@dataclass(frozen=True, slots=True)
class ConnectionLost:
    """A connection is gone; this alone changes no status."""

    connection: int
    link_ended: bool = False
    """The link to its gateway has ended without notice: the node may still hold the connection, and say
    something that the registry does not receive."""


@dataclass(frozen=True, slots=True)
class DrainRequested:
    """An operator wants a node drained; None takes the default deadline."""

    ref: int
    node_id: str
    deadline_seconds: float | None = None
    reason: str = ""
    by: str = ""
    """Here and below: the name of the operator token, or its id if it has none; empty with auth off."""


@dataclass(frozen=True, slots=True)
class ResumeRequested:
    """An operator resumes a node."""

    ref: int
    node_id: str
    reason: str = ""
    by: str = ""


@dataclass(frozen=True, slots=True)
class CordonRequested:
    """An operator cordons a node (`reason`), or lifts the cordon (None)."""

    ref: int
    node_id: str
    reason: str | None
    by: str = ""
    lifted_because: str = ""


@dataclass(frozen=True, slots=True)
class RemovalRequested:
    """An operator removes a node's record."""

    ref: int
    node_id: str
    reason: str = ""
    by: str = ""


class Command(StrEnum):
    """What a registry can command a node (§3.6)."""

    REFRESH = "refresh"
    """Probe again, and send a full heartbeat."""
    REREGISTER = "reregister"
    """Send `node_register` again, on the same connection."""
    CHECK = "check"
    """Run the admission checks again, and report their results."""


@dataclass(frozen=True, slots=True)
class ControlRequested:
    """An operator sends a node a command."""

    ref: int
    node_id: str
    command: Command
    reason: str = ""
    by: str = ""


@dataclass(frozen=True, slots=True)
class GpuCordonRequested:
    """An operator cordons one GPU of a node (`reason`), or lifts the cordon (None)."""

    ref: int
    node_id: str
    uuid: str
    reason: str | None
    by: str = ""
    lifted_because: str = ""


@dataclass(frozen=True, slots=True)
class Requester:
    """Who acts on claims: the name of an operator token, or its id if it has none."""

    name: str | None = None
    """None with auth off: nobody is checked."""
    is_admin: bool = False


ANYBODY = Requester()


@dataclass(frozen=True, slots=True)
class ClaimRequested:
    """A scheduler claims slots for a job, and waits for them where the job says so."""

    ref: int
    job: Job
    claim_id: str
    """Drawn by the shell: 128 random bits, in hexadecimal."""
    requester: Requester = ANYBODY


@dataclass(frozen=True, slots=True)
class ClaimWaitEnded:
    """The request of a waiting job was closed: nobody waits for its answer any more."""

    ref: int


@dataclass(frozen=True, slots=True)
class RenewalRequested:
    """A scheduler renews a claim for one more TTL, or for another one."""

    ref: int
    job_id: str
    claim_id: str | None = None
    """None for the requester's own current claim of the job."""
    ttl_seconds: float | None = None
    requester: Requester = ANYBODY


@dataclass(frozen=True, slots=True)
class ReleaseRequested:
    """A scheduler releases a claim, or an ended one that still holds GPUs."""

    ref: int
    job_id: str
    claim_id: str | None = None
    """None for the requester's own current claim of the job."""
    requester: Requester = ANYBODY
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinTokenRequested:
    """An operator lets nodes join, or gives one node its id back; the shell has drawn the token."""

    ref: int
    token_id: str
    digest: str = field(repr=False)
    ttl_seconds: float | None = None
    """None: it does not expire."""
    uses: int | None = 1
    """How many nodes may join by it; None for any number."""
    labels: Mapping[str, str] = field(default_factory=dict)
    note: str = ""
    node_id: str | None = None
    """The only id that it gives; None for a token that any node may join by."""
    reclaims: bool = True
    """That id must be known: the token gives it back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorTokenRequested:
    """An operator creates a token to read, operate or administer; the shell has drawn it."""

    ref: int
    token_id: str
    digest: str = field(repr=False)
    role: Role
    ttl_seconds: float | None = None
    name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRequested:
    """A person signs in to the fleet page with the operator token `parent`; the shell drew the session."""

    ref: int
    token_id: str
    digest: str = field(repr=False)
    parent: str


@dataclass(frozen=True, slots=True)
class RevocationRequested:
    """An operator revokes a join or an operator token, or signs out of a session."""

    ref: int
    token_id: str


@dataclass(frozen=True, slots=True)
class RotationRequested:
    """An operator rotates a node's token; with `revoke_now` the old one proves nothing from now on."""

    ref: int
    node_id: str
    revoke_now: bool = False


@dataclass(frozen=True, slots=True)
class Stored:
    """The store holds the changes of every output up to this number."""

    number: int


@dataclass(frozen=True, slots=True)
class StoreFailed:
    """A save failed, or has no outcome in time: every waiting answer was replaced by `REGISTRY_BUSY`.

    The shell retries what is not stored, until `StoreRecovered`.
    """

    problem: str


@dataclass(frozen=True, slots=True)
class StoreRecovered:
    """The store answers again: every change that waited for it is stored."""

    outage_seconds: float
    """How long the store confirmed nothing."""


NodeChangeRequest = DrainRequested | ResumeRequested | CordonRequested | GpuCordonRequested | RemovalRequested
NodeRequest = NodeChangeRequest | ControlRequested
ClaimEvent = ClaimRequested | RenewalRequested | ReleaseRequested
TokenRequest = (
    JoinTokenRequested | OperatorTokenRequested | SessionRequested | RevocationRequested | RotationRequested
)
OperatorRequest = NodeRequest | ClaimEvent | TokenRequest


@dataclass(frozen=True, slots=True)
class Traced:
    """A request within a trace: each event that is logged because of it names the trace (§8)."""

    request: OperatorRequest
    trace_id: str


NodeEvent = RegistrationReceived | SessionReported | FaultReported | UnregistrationReceived | ConnectionLost
StoreEvent = StoreFailed | StoreRecovered
RareEvent = NodeEvent | OperatorRequest | ClaimWaitEnded | StoreEvent
Event = HeartbeatReceived | HeartbeatRepeated | FiguresFetched | Stored | RareEvent | Traced
