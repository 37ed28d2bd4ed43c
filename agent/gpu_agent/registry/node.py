"""One node's record, and the table of all nodes.

The record is mutable: the fleet owns it and dispatch reads it. Each group of its fields is written by one
module, and the record itself decides nothing. Times are monotonic seconds.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf

from pydantic_core import to_json

from gpu_agent.registry.gpu_history import GpuHistory
from gpu_agent.registry.gpus import Gpus
from gpu_agent.registry.job import Claim, HeldGrant
from gpu_agent.registry.model_list import ModelList
from gpu_agent.registry.tokens import NodeTokens
from gpu_agent.wire.codes import NodeStatus, ReasonCode
from gpu_agent.wire.heartbeat import Usage
from gpu_agent.wire.messages import NodeCheck, NodeRegister

LONGEST_DRAIN_SECONDS = 30 * 86_400.0
"""The longest deadline of a drain, whatever was requested."""


@dataclass(frozen=True, kw_only=True)
class Declared:
    """What a node declares, and what follows from it; `declaration` replaces it as a whole."""

    registration: NodeRegister
    """As last sent, with the parts that heartbeats replaced since; its models are in `models`."""
    models: ModelList = field(default_factory=ModelList)
    labels: Mapping[str, str] = field(default_factory=dict)
    """With the labels that its join token granted, which win over its own."""
    max_concurrent_jobs: int | None = None
    """As stated; None leaves it to `NodeRecord.slots`."""
    default_slots: int = 4
    ready_models: frozenset[str] = frozenset()
    """Ids that are enabled and ready in at least one version."""
    enabled_models: frozenset[str] = frozenset()
    """Ids that are enabled in at least one version, ready or not."""
    models_sufficient: bool = True
    """True while the required models, and enough of all models, are ready."""
    features: frozenset[str] = frozenset()
    """Base features declared true or proven by a ready model, plus non-base names (A-6)."""

    @property
    def size_bytes(self) -> int:
        """What the declaration takes, as text."""
        return self.models.size_bytes + len(to_json(self.registration.as_json()))

    def whole(self) -> NodeRegister:
        """Return the registration with its models."""
        return self.registration.model_copy(
            update={"installed_models": self.models.models(), "capability_state": self.models.states()}
        )


@dataclass(slots=True, kw_only=True)
class Liveness:
    """What heartbeats show of a node; written by `heartbeat`."""

    last_seen_at: float = 0.0
    """The last sign of life: a heartbeat, a registration, or the registry's own start (§4, restart)."""
    session_began_at: float = 0.0
    """When the node registered, or the registry loaded it."""
    last_heartbeat_at: float | None = None
    """The last heartbeat of this registration."""
    suspected_until: float | None = None
    """When a silent node times out, while the registry suspects itself rather than the node (§4).

    Until its next heartbeat the node is excluded as disconnected.
    """
    warmup_until: float = 0.0
    """When a node that is still registering has taken too long."""
    healthy_heartbeats: int = 0
    """Consecutive; an unhealthy heartbeat sets it to 0."""
    unhealthy_heartbeats: int = 0
    """Consecutive; a healthy heartbeat sets it to 0."""
    recent: tuple[bool, ...] = ()
    """Whether each of the last heartbeats was healthy, newest last, at most `failure_window`."""
    usage: Usage | None = None
    """The last heartbeat's; None before the first of this registration."""
    probe_age_seconds: float | None = None
    """The last heartbeat's: the age of its GPU reading."""
    figures_at: float = 0.0
    """When figures came last; a heartbeat that repeats the last one brings none."""
    last_refused: bool = False
    """Whether the last heartbeat on its connection was refused: so are those that repeat it."""
    load: tuple[object, ...] = ()
    """The usage as dispatch last received it."""
    round_trip_seconds: float | None = None
    """Of the connection's network; None where it is not measured."""

    def begin_session(self, now: float, round_trip_seconds: float | None) -> None:
        """Start without a heartbeat: the node has registered."""
        self.last_seen_at = self.session_began_at = now
        self.round_trip_seconds = round_trip_seconds
        self.last_heartbeat_at = self.usage = self.probe_age_seconds = self.suspected_until = None
        self.last_refused = False

    def resume_session(
        self, now: float, heartbeat_age_seconds: float | None, *, timeout_seconds: float
    ) -> None:
        """Go on with a session of which this leader has had no sign: suspected, with one full timeout."""
        self.session_began_at = now
        self.suspected_until = now + timeout_seconds
        if heartbeat_age_seconds is not None:
            self.last_seen_at = now - heartbeat_age_seconds

    def restart_warmup(self, until: float) -> None:
        """Reset the counts of heartbeats and the warm-up clock (§4)."""
        self.healthy_heartbeats = self.unhealthy_heartbeats = 0
        self.recent = ()
        self.warmup_until = until


@dataclass(slots=True, kw_only=True)
class Schedule:
    """How often the node sends heartbeats and gets its status; written by `pacing`."""

    share: float = 0.0
    """Where the node is within the spread of intervals, drawn from 0 to 1 when it registers."""
    interval_seconds: float = 15.0
    warmup_interval_seconds: float = 2.0
    timeout_seconds: float = 45.0
    next_status_at: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """A requested drain."""

    by_operator: bool
    deadline: float
    """When the node goes offline, whatever runs."""
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuCordon:
    """One GPU that an operator took out of dispatch."""

    reason: str = ""
    by: str = ""
    """Whose operator token it was; empty with auth off."""

    def __str__(self) -> str:
        """Say who cordoned it, and why."""
        return f"cordoned by {self.by or 'an operator'}: {self.reason or 'no reason given'}"


@dataclass(slots=True, kw_only=True)
class DesiredState:
    """What an operator, or the node itself, requested; written by `operations` and `status`."""

    cordoned: str | None = None
    """Why an operator cordoned it; None when it is not cordoned."""
    drain: Drain | None = None
    gpu_cordons: dict[str, GpuCordon] = field(default_factory=dict)
    """By the UUID of a GPU, declared at the moment or not: it is claimed by no one."""

    @property
    def by_operator(self) -> bool:
        """True while an operator wants the node drained or cordoned."""
        drained = self.drain is not None and self.drain.by_operator
        return self.cordoned is not None or drained or bool(self.gpu_cordons)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportedJobs:
    """The jobs that a node reports; `heartbeat` replaces it as a whole."""

    in_order: tuple[str, ...] | None = None
    """Their ids as reported; None where the node reports no ids."""
    ids: frozenset[str] | None = None
    count: int | None = None
    """None where the node does not know it; that counts as none beside what is claimed."""
    is_guess: bool = False
    """True for a number that counts GPU processes: it occupies no slot and delays no drain (§5.1)."""

    @classmethod
    def of(
        cls, in_order: tuple[str, ...] | None, count: int | None, *, is_guess: bool = False
    ) -> "ReportedJobs":
        """Take what a message reports."""
        ids = None if in_order is None else frozenset(in_order)
        return cls(in_order=in_order, ids=ids, count=count, is_guess=is_guess and ids is None)

    def without(self, job_id: str) -> "ReportedJobs":
        """Return what is left after a release: the job has ended since this report."""
        if self.ids is None:
            left = None if self.count is None else max(0, self.count - 1)
            return ReportedJobs(count=left, is_guess=self.is_guess)
        return ReportedJobs.of(tuple(one for one in self.in_order or () if one != job_id), self.count)


@dataclass(slots=True, kw_only=True)
class ReportedChecks:
    """The admission checks that a node reports; `node_checks` replaces it as a whole."""

    listed: tuple[NodeCheck, ...]
    """As reported."""
    failed: tuple[NodeCheck, ...] = ()
    """The required ones of the whole node that failed."""
    failed_gpus: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """UUID → the required ones that this GPU failed."""
    unreported: tuple[str, ...] = ()
    """The required ones without any result."""
    requested: bool = False
    """True once the registry has asked for these in this session."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Transition:
    """One change of a node's status."""

    at: float
    source: NodeStatus | None
    target: NodeStatus
    reason_code: ReasonCode


@dataclass(slots=True, kw_only=True)
class FaultCounter:
    """How many internal faults a node reported within a minute."""

    until: float = 0.0
    """When that minute is over."""
    noted: int = 0
    left_out: int = 0


@dataclass(slots=True, kw_only=True)
class NodeRecord:
    """Everything that the registry knows of one node."""

    node_id: str
    registered_at: float
    epoch: int = 0
    acknowledged: bool = True
    """False until the ack of a new node is sent; until then its record goes with its connection."""
    address: str | None = None
    connection: int | None = None
    """The connection that stands for the node; written by `NodeTable`."""
    registered_on: int | None = None
    """The connection on which it registered last. With gateways its number is of use to later leaders."""

    # Written by `token_issuing`.
    tokens: NodeTokens = field(default_factory=NodeTokens)
    """What proves the node's identity."""
    issued_on: int | None = None
    """The connection that received the newest of its tokens; None once an operator rotates it."""
    issued_in: int | None = None
    """The epoch of the session whose acknowledgement brought it; None once an operator rotates it."""
    granted_labels: Mapping[str, str] = field(default_factory=dict)
    """Granted by the join token that let it in."""

    # Written by `lifecycle` and `health`.
    status: NodeStatus = NodeStatus.REGISTERING
    previous_status: NodeStatus | None = None
    reason_code: ReasonCode = ReasonCode.REGISTERED
    reason: str = ""
    since: float = 0.0
    history: tuple[Transition, ...] = ()
    """The last transitions, newest last; empty while the node has no status of its own yet."""
    exits: tuple[float, ...] = ()
    """When it last left `ready` because something went wrong, newest last, at most `flap_limit`."""

    # Written by the module that the class of each names.
    declared: Declared
    gpus: Gpus = field(default_factory=Gpus)
    """By UUID; a GPU declared without one is keyed `#<position>`."""
    gpu_history: GpuHistory = field(default_factory=GpuHistory, compare=False)
    """What they did in the last 15 minutes; written by `heartbeat`."""
    liveness: Liveness = field(default_factory=Liveness)
    schedule: Schedule = field(default_factory=Schedule)
    desired: DesiredState = field(default_factory=DesiredState)
    jobs: ReportedJobs = field(default_factory=ReportedJobs)
    checks: ReportedChecks | None = None
    """None before the first report of a session, and of a node that runs no checks."""
    claims: dict[str, Claim] = field(default_factory=dict)
    """By job; written by `dispatch`."""
    held: dict[str, HeldGrant] = field(default_factory=dict)
    """By claim id: what ended claims still hold here; written by `dispatch`."""
    duplicate_gpus: frozenset[str] = frozenset()
    """UUIDs of its GPUs that another node declares too; written by `dispatch`."""
    duplicate_nodes: frozenset[str] = frozenset()
    """The nodes that declare them; written by `dispatch`."""
    recheck_gpus: bool = False
    """True until a reading made after the end of a claim shows whether its processes are gone."""
    unclaimed_use: frozenset[str] = frozenset()
    """UUIDs of GPUs with processes of no claim; written by `dispatch`."""
    unclaimed_before: frozenset[str] = frozenset()
    """The same at the heartbeat before; this and the next are written by `claim_telemetry`."""
    unclaimed_logged: frozenset[str] = frozenset()
    duplicates_logged: frozenset[str] = frozenset()
    last_job_at: float = -inf
    """When a job without GPUs of its own was last seen on it; written by `claims`."""
    foreign_jobs: frozenset[str] = frozenset()
    """Jobs that it reports without a claim, each logged once; written by `claims`."""
    faults: FaultCounter = field(default_factory=FaultCounter)

    @property
    def connected(self) -> bool:
        """True while a live connection stands for the node, and the registry does not suspect it."""
        return self.connection is not None and self.liveness.suspected_until is None

    @property
    def slots(self) -> int:
        """How many jobs it takes at a time (§5.1)."""
        stated = self.declared.max_concurrent_jobs
        return max(self.declared.default_slots, self.gpus.usable) if stated is None else stated

    @property
    def hostname(self) -> str | None:
        """Its name for people; never an identity."""
        return self.declared.registration.hostname

    @property
    def in_flight_jobs(self) -> int:
        """Occupied slots (§5): the union of ids where ids are reported, else the larger count."""
        ids = self.jobs.ids
        if ids is not None:
            return len(ids | self.claims.keys()) if self.claims else len(ids)
        return max(len(self.claims), 0 if self.jobs.is_guess else self.jobs.count or 0)

    @property
    def jobs_known(self) -> bool:
        """True once this session has reported its jobs; before that, unknown jobs may run."""
        return self.liveness.last_heartbeat_at is not None or self.jobs.in_order is not None


class NodeTable:
    """All nodes by their id, and the connection that stands for each.

    One connection stands for at most one node, and one node has at most one connection.
    """

    def __init__(self) -> None:
        self.records: dict[str, NodeRecord] = {}
        self.by_connection: dict[int, NodeRecord] = {}
        """Only the connection that registered a node is here."""
        self._awaited_on: dict[int, str] = {}
        """By the connection on which a node registered last, while a gateway may still report it: its id."""
        self._dismissed: set[int] = set()

    def add(self, record: NodeRecord) -> None:
        """Add a node."""
        self.records[record.node_id] = record

    def add_stored(self, record: NodeRecord) -> None:
        """Add a node that was stored."""
        self.add(record)
        self.await_report(record)

    def await_report(self, record: NodeRecord) -> None:
        """Let a gateway that holds the connection on which the node registered repeat that registration."""
        if record.registered_on is not None:
            self._awaited_on[record.registered_on] = record.node_id

    def registered_on(self, connection: int) -> NodeRecord | None:
        """Return the node that registered last on a connection that a gateway reports."""
        record = self.records.get(self._awaited_on.get(connection, ""))
        return None if record is None or record.registered_on != connection else record

    def remove(self, record: NodeRecord) -> None:
        """Remove a node."""
        self.records.pop(record.node_id, None)
        self._forget_report(record)
        if record.connection is not None:
            self._unbind(record.connection)

    def bind(self, record: NodeRecord, connection: int) -> None:
        """Let a connection stand for a node; the one before it must have been dismissed."""
        self._forget_report(record)
        self.by_connection[connection] = record
        record.connection = connection

    def dismiss(self, connection: int) -> None:
        """Ignore a connection that is about to be closed: its late frames count for nothing."""
        self._unbind(connection)
        self._dismissed.add(connection)

    def is_dismissed(self, connection: int) -> bool:
        """Say whether a connection is to be ignored."""
        return connection in self._dismissed

    def connection_ended(self, connection: int) -> NodeRecord | None:
        """Remove a connection that is gone; returns the node it stood for."""
        self._dismissed.discard(connection)
        return self._unbind(connection)

    def _forget_report(self, record: NodeRecord) -> None:
        if record.registered_on is not None and self.registered_on(record.registered_on) is record:
            del self._awaited_on[record.registered_on]

    def _unbind(self, connection: int) -> NodeRecord | None:
        record = self.by_connection.pop(connection, None)
        if record is not None:
            record.connection = None
        return record


class FleetCounters:
    """How many nodes are live, and how many of them warm up; counted as nodes change, never by a scan."""

    def __init__(self) -> None:
        self._live: set[str] = set()
        self._warming: set[str] = set()

    @property
    def live(self) -> int:
        """Nodes that send heartbeats or are expected back: not offline, or with an open session."""
        return len(self._live)

    @property
    def warming(self) -> int:
        """Live nodes that register now, or will when they are back; after a restart all of them."""
        return len(self._warming)

    def count(self, record: NodeRecord) -> None:
        """Count a node as it is now."""
        live = record.status is not NodeStatus.OFFLINE or record.connection is not None
        warming = live and (record.status is NodeStatus.REGISTERING or not record.connected)
        for members, is_member in ((self._live, live), (self._warming, warming)):
            (members.add if is_member else members.discard)(record.node_id)

    def remove(self, node_id: str) -> None:
        """Count a node no longer."""
        self._live.discard(node_id)
        self._warming.discard(node_id)
