"""What the fleet has, in figures: nodes by status and reason, GPUs by status and model, slots, models.

Kept by what each node adds: when a node has changed, what it added is taken out and what it adds now is put
in, so that no figure costs a scan of the fleet.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TypeVar

from gpu_agent.registry.dispatch.gpu_status import is_degraded
from gpu_agent.registry.node import NodeRecord
from gpu_agent.wire.codes import GpuStatus, NodeStatus, ReasonCode

_Key = TypeVar("_Key")

_DRAINED = frozenset({ReasonCode.DRAIN_COMPLETE, ReasonCode.DRAIN_DEADLINE})
"""A node that is offline for one of these was drained: that is no fault."""


class Severity(IntEnum):
    """How urgent a node is for people, the most urgent first; up to `GPU_DEGRADED` it needs attention."""

    OFFLINE = 0
    DEGRADED = 1
    GPU_LOST = 2
    GPU_UNKNOWN = 3
    GPU_DEGRADED = 4
    DRAINING = 5
    REGISTERING = 6
    DRAINED = 7
    READY = 8

    @property
    def needs_attention(self) -> bool:
        """Whether it is offline without a drain, or it or one of its GPUs has a fault."""
        return self <= Severity.GPU_DEGRADED


_OF_STATUS: Mapping[NodeStatus, Severity] = {
    NodeStatus.OFFLINE: Severity.OFFLINE,
    NodeStatus.DEGRADED: Severity.DEGRADED,
    NodeStatus.DRAINING: Severity.DRAINING,
    NodeStatus.REGISTERING: Severity.REGISTERING,
    NodeStatus.READY: Severity.READY,
}


@dataclass(frozen=True, slots=True)
class ModelShare:
    """The GPUs of one model on one node."""

    name: str
    gpus: int
    free: int
    claimed: int
    idle: int
    """Claimed, and not used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFigures:
    """What one node adds to the figures of its fleet, and by what lists of nodes are sorted."""

    node_id: str
    hostname: str
    """Empty where it is unknown."""
    status: NodeStatus
    reason_code: ReasonCode
    severity: Severity
    since: float
    """When it got its status, in monotonic seconds."""
    cordoned: bool
    gpu_statuses: tuple[GpuStatus, ...]
    """Without the parents of MIG devices, in the order of the declaration."""
    degraded_gpus: int
    gpu_models: tuple[ModelShare, ...]
    slots: int
    slots_taken: int
    models: frozenset[str]
    """The ids of the models that a job can use on it now: none unless the node is ready."""

    @property
    def free_gpus(self) -> int:
        """How many GPUs a claim can get now."""
        return self.gpu_statuses.count(GpuStatus.FREE)


@dataclass(slots=True)
class GpuModelFigures:
    """The GPUs of one model in the fleet."""

    gpus: int = 0
    free: int = 0
    claimed: int = 0
    """Without those that are idle."""
    idle: int = 0
    free_by_node: Counter[int] = field(default_factory=Counter)
    """How many nodes have so many of them free; no node with none."""

    @property
    def most_free_on_one_node(self) -> int:
        """The largest free set on one node."""
        return max(self.free_by_node, default=0)


class FleetTotals:
    """The figures of all nodes."""

    def __init__(self) -> None:
        self.of_node: dict[str, NodeFigures] = {}
        """What each node adds."""
        self.nodes: Counter[NodeStatus] = Counter()
        self.reasons: Counter[tuple[NodeStatus, ReasonCode]] = Counter()
        self.gpus: Counter[GpuStatus] = Counter()
        self.degraded_gpus = 0
        """GPUs that answer and have a fault, whatever their status."""
        self.gpu_models: dict[str, GpuModelFigures] = {}
        self.slots = 0
        self.slots_taken = 0
        self.models: Counter[str] = Counter()
        """On how many ready nodes jobs can use each model."""
        self.attention = 0
        """Nodes that need attention."""
        self.cordoned = 0
        """Nodes that are cordoned as a whole."""

    def put(self, figures: NodeFigures) -> NodeFigures | None:
        """Count a node as it is now; returns what it added before, None for a new node."""
        before = self.of_node.get(figures.node_id)
        if before == figures:
            return before
        if before is not None:
            self._add(before, -1)
        self.of_node[figures.node_id] = figures
        self._add(figures, 1)
        return before

    def remove(self, node_id: str) -> NodeFigures | None:
        """Count a node no more; returns what it added."""
        before = self.of_node.pop(node_id, None)
        if before is not None:
            self._add(before, -1)
        return before

    def _add(self, one: NodeFigures, times: int) -> None:
        _count(self.nodes, one.status, times)
        _count(self.reasons, (one.status, one.reason_code), times)
        for status in one.gpu_statuses:
            _count(self.gpus, status, times)
        self.degraded_gpus += times * one.degraded_gpus
        self.slots += times * one.slots
        self.slots_taken += times * one.slots_taken
        self.attention += times * one.severity.needs_attention
        self.cordoned += times * one.cordoned
        for model_id in one.models:
            _count(self.models, model_id, times)
        for share in one.gpu_models:
            self._add_gpus(share, times)

    def _add_gpus(self, share: ModelShare, times: int) -> None:
        model = self.gpu_models.setdefault(share.name, GpuModelFigures())
        model.gpus += times * share.gpus
        model.free += times * share.free
        model.claimed += times * share.claimed
        model.idle += times * share.idle
        if share.free:
            _count(model.free_by_node, share.free, times)
        if not model.gpus:
            del self.gpu_models[share.name]


def node_figures(record: NodeRecord, gpu_statuses: tuple[GpuStatus, ...]) -> NodeFigures:
    """Return what a node adds, given what its GPUs are for jobs now."""
    all_ok = record.gpus.all_ok
    degraded = 0 if all_ok else sum(is_degraded(gpu) for gpu in record.gpus.values() if not gpu.is_parent)
    names = [name for name in record.gpus.names if name is not None]
    return NodeFigures(
        node_id=record.node_id,
        hostname=record.hostname or "",
        status=record.status,
        reason_code=record.reason_code,
        severity=_severity(record, gpu_statuses, degraded),
        since=record.since,
        cordoned=record.desired.cordoned is not None,
        gpu_statuses=gpu_statuses,
        degraded_gpus=degraded,
        gpu_models=_shares(names, gpu_statuses),
        slots=record.slots,
        slots_taken=record.in_flight_jobs,
        models=record.declared.ready_models if record.status is NodeStatus.READY else frozenset(),
    )


def _severity(record: NodeRecord, gpu_statuses: tuple[GpuStatus, ...], degraded_gpus: int) -> Severity:
    if record.status is NodeStatus.OFFLINE and record.reason_code in _DRAINED:
        of_status = Severity.DRAINED
    else:
        of_status = _OF_STATUS[record.status]
    if GpuStatus.LOST in gpu_statuses:
        return min(of_status, Severity.GPU_LOST)
    if GpuStatus.UNKNOWN in gpu_statuses:
        return min(of_status, Severity.GPU_UNKNOWN)
    return min(of_status, Severity.GPU_DEGRADED) if degraded_gpus else of_status


def _shares(names: list[str], statuses: tuple[GpuStatus, ...]) -> tuple[ModelShare, ...]:
    if names and names.count(names[0]) == len(names):  # as almost always
        return (_share(names[0], statuses),)
    of_name: dict[str, list[GpuStatus]] = {}
    for name, status in zip(names, statuses, strict=True):
        of_name.setdefault(name, []).append(status)
    return tuple(_share(name, of_name[name]) for name in sorted(of_name))


def _share(name: str, statuses: Sequence[GpuStatus]) -> ModelShare:
    free, claimed, idle = map(statuses.count, (GpuStatus.FREE, GpuStatus.CLAIMED, GpuStatus.IDLE))
    return ModelShare(name, len(statuses), free, claimed, idle)


def _count(counter: Counter[_Key], key: _Key, times: int) -> None:
    """Count a key more or less often; one that is left 0 times is dropped."""
    counter[key] += times
    if not counter[key]:
        del counter[key]
