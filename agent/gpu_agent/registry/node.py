"""One node's record, and the table of all nodes.

The record is mutable. The fleet owns it and dispatch reads it. It holds state and what follows from that state, and
decides nothing. Times are monotonic seconds.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from gpu_agent.registry.credentials import NodeTokens
from gpu_agent.registry.gpus import Gpus
from gpu_agent.registry.job import Claim
from gpu_agent.wire.codes import NodeStatus, ReasonCode
from gpu_agent.wire.messages import Hardware, InstalledModel, NodeRegister, ResourceUsage

# One node as the registry knows it: mutable, owned by the fleet, read by dispatch.
#
# Holds state and its derivations; decides nothing.


LONGEST_DRAIN_SECONDS = 30 * 86_400.0
"""No job is waited for longer than this, whatever deadline is asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """A wish to empty a node."""

    by_operator: bool
    deadline: float
    """Monotonic seconds at which the node goes offline whatever runs."""
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Transition:
    """One change of a node's status; a story is made of them."""

    at: float
    source: NodeStatus | None
    target: NodeStatus
    reason_code: ReasonCode


@dataclass(slots=True, kw_only=True)
class FaultCounter:
    """How many internal faults a node has reported of late."""

    until: float = 0.0
    """When the minute that is counted is over (monotonic seconds)."""
    noted: int = 0
    left_out: int = 0


@dataclass(slots=True, kw_only=True)
class NodeRecord:
    """Everything known of one node. Times are monotonic seconds."""

    node_id: str
    registration: NodeRegister
    """As last sent, with what beats have replaced since."""
    written: tuple[NodeRegister, dict[str, object]] | None = None
    """The registration in the form in which it is kept, and which one that was."""
    hardware: Hardware
    registered_at: float
    status: NodeStatus = NodeStatus.REGISTERING
    previous_status: NodeStatus | None = None
    reason_code: ReasonCode = ReasonCode.REGISTERED
    reason: str = ""
    since: float = 0.0
    story: tuple[Transition, ...] = ()
    """The last changes of status, newest last; empty while the node has no status of its own yet."""
    connection: int | None = None
    round_trip_seconds: float | None = None
    """As the connection's network takes; None where nobody measures it."""
    epoch: int = 0
    acknowledged: bool = True
    """False until the first acknowledgement of a new node is sent; its record goes with its connection until then."""
    address: str | None = None
    keys: NodeTokens = field(default_factory=NodeTokens)
    """What proves that somebody is this node."""
    issued_on: int | None = None
    """The connection that was told the newest of its tokens; None once another is wished."""
    granted_labels: Mapping[str, str] = field(default_factory=dict)
    """Given by the join token that let it in; they go before what the node says of itself."""
    pace: float = 0.0
    """Its place within the spread of intervals, drawn from 0 to 1 when it registers."""
    interval_seconds: float = 15.0
    warmup_interval_seconds: float = 2.0
    timeout_seconds: float = 45.0
    heard_at: float = 0.0
    """The last sign of life: a beat, a registration, or the registry's own start (§4, restart)."""
    last_heartbeat_at: float | None = None
    """The last beat of this registration."""
    suspected_until: float | None = None
    """While the registry suspects itself rather than the silent node: when it times out (§4). Until it is heard the
    node is excluded as disconnected."""
    warmup_until: float = 0.0
    """When a node that is still registering has taken too long."""
    next_status_at: float = 0.0
    healthy_beats: int = 0
    unhealthy_heartbeats: int = 0
    """Consecutive; a healthy beat sets it to 0."""
    recent: tuple[bool, ...] = ()
    """Verdicts of the last beats, newest last, at most `failure_window`."""
    exits: tuple[float, ...] = ()
    """When it last left `ready` because something went wrong, the newest last, at most `flap_limit`."""
    usage: ResourceUsage | None = None
    """The last beat's; None before the first of this registration."""
    probe_age_seconds: float | None = None
    """The last beat's: the age of its GPU reading."""
    load: tuple[object, ...] = ()
    """What dispatch was last told of the usage."""
    gpus: Gpus = field(default_factory=Gpus)
    """By UUID; a GPU declared without one is keyed `#<position>`."""
    models_sufficient: bool = True
    """True while the required models, and enough of all models, are ready."""
    models: tuple[InstalledModel, ...] = ()
    capability_state: dict[str, str] | None = None
    ready_models: frozenset[str] = frozenset()
    """Ids that are enabled and ready in at least one version."""
    features: frozenset[str] = frozenset()
    """Base features declared true or proven by a ready model, plus non-base names (A-6)."""
    accept_public_jobs: bool = False
    labels: dict[str, str] = field(default_factory=dict)
    max_concurrent_jobs: int = 4
    endpoint: str | None = None
    simulated: bool = False
    cordoned: str | None = None
    """Why an operator cordoned it; None when not cordoned."""
    drain: Drain | None = None
    claims: dict[str, Claim] = field(default_factory=dict)
    running_jobs: tuple[str, ...] | None = None
    """As last told: the ids, where ids are told."""
    reported_job_ids: frozenset[str] | None = None
    reported_jobs: int | None = None
    """As last told; None where the node does not know it, which counts as none beside what is claimed."""
    faults: FaultCounter = field(default_factory=FaultCounter)

    @property
    def connected(self) -> bool:
        """True while a live connection stands for the node, and nothing casts doubt on it."""
        return self.connection is not None and self.suspected_until is None

    @property
    def has_desired_state(self) -> bool:
        """True while an operator wants it empty, or without new jobs."""
        return self.cordoned is not None or (self.drain is not None and self.drain.by_operator)

    @property
    def in_flight_jobs(self) -> int:
        """Occupied places (§5): the union of ids where ids are reported, else the larger count."""
        if self.reported_job_ids is not None:
            ids = self.reported_job_ids
            return len(ids | self.claims.keys()) if self.claims else len(ids)
        return max(len(self.claims), self.reported_jobs or 0)

    @property
    def jobs_known(self) -> bool:
        """True once this session has said what runs; before that, jobs may run that nobody here knows of."""
        return self.last_heartbeat_at is not None or self.running_jobs is not None

    @property
    def jobs_to_finish(self) -> int:
        """What delays a drain: occupied places, but no count that is only guessed (§5).

        A node of schema 1.1 whose workers announce jobs reports their ids; without ids its
        number counts GPU processes. An older node has no ids to give: its number is its word.
        """
        if self.reported_job_ids is None and self.registration.capability_schema_version not in (None, "1.0"):
            return len(self.claims)
        return self.in_flight_jobs


# All nodes by their id, and which connection stands for which.
#
# One connection stands for at most one node and one node has at most one connection. Decides
# nothing about who may have which.


class NodeTable:
    """The nodes that the registry knows, and the connections that speak for them."""

    def __init__(self) -> None:
        self.records: dict[str, NodeRecord] = {}
        self.bound: dict[int, NodeRecord] = {}
        """By connection; only the connection that registered a node is here."""
        self._dismissed: set[int] = set()

    def add(self, record: NodeRecord) -> None:
        """Know a node from now on."""
        self.records[record.node_id] = record

    def drop(self, record: NodeRecord) -> None:
        """Know a node no longer."""
        self.records.pop(record.node_id, None)
        if record.connection is not None:
            self.unbind(record.connection)

    def bind(self, record: NodeRecord, connection: int) -> None:
        """Let a connection stand for a node; the one before it must have been dismissed."""
        self.bound[connection] = record
        record.connection = connection

    def unbind(self, connection: int) -> NodeRecord | None:
        """Let a connection stand for nobody; returns the node it stood for."""
        record = self.bound.pop(connection, None)
        if record is not None:
            record.connection = None
        return record

    def dismiss(self, connection: int) -> None:
        """Stop listening to a connection that is about to be closed: its late frames are ignored."""
        self.unbind(connection)
        self._dismissed.add(connection)

    def dismissed(self, connection: int) -> bool:
        """Say whether a connection was told to go."""
        return connection in self._dismissed

    def ended(self, connection: int) -> NodeRecord | None:
        """Forget a connection that is gone; returns the node it stood for."""
        self._dismissed.discard(connection)
        return self.unbind(connection)
