"""Filters by a node's state and its load: status, connection, cordon, slots, use of CPU, memory and GPUs.

Most exclude the node from every job.
"""

from collections.abc import Callable, Iterator

from gpu_agent.registry import lifecycle
from gpu_agent.registry.dispatch.candidate import Candidate
from gpu_agent.registry.dispatch.filter_row import (
    Filter,
    GpuKey,
    NodeExclusion,
    NodeQuestion,
    NodeState,
    Shortfall,
)
from gpu_agent.registry.job import Demand
from gpu_agent.registry.node import NodeRecord
from gpu_agent.registry.settings import Thresholds
from gpu_agent.wire.codes import ExclusionReason, NodeStatus


def _node_state(
    reason: ExclusionReason,
    excludes: Callable[[NodeRecord, Thresholds], bool],
    *,
    shortfall: Callable[[Candidate], Shortfall],
    clears_when: Callable[[NodeQuestion], str],
    permanent: bool = False,
) -> Filter:
    """Make the row of a filter that excludes a node from every job."""

    def of_job(candidate: Candidate, _demand: Demand) -> Shortfall | None:
        return shortfall(candidate) if excludes(candidate.record, candidate.limits) else None

    def exclusions(asked: NodeQuestion) -> Iterator[NodeExclusion]:
        candidate = asked.candidate
        if excludes(candidate.record, candidate.limits):
            yield NodeExclusion.of(
                reason, shortfall(candidate), jobs="every job", clears_when=clears_when(asked)
            )

    return Filter(
        reason, key=NodeState(excludes), shortfall=of_job, exclusions=exclusions, permanent=permanent
    )


def _not_ready(candidate: Candidate) -> Shortfall:
    record = candidate.record
    return Shortfall("a ready node", f"status {record.status} ({record.reason_code})")


def _when_ready(asked: NodeQuestion) -> str:
    candidate = asked.candidate
    return lifecycle.clears_when(candidate.record, candidate.limits, asked.now) or ""


def _disconnected(candidate: Candidate) -> Shortfall:
    silent = candidate.record.connection is not None
    return Shortfall("a connected node", "a silent connection" if silent else "no connection")


def _when_connected(asked: NodeQuestion) -> str:
    silent = asked.candidate.record.connection is not None
    return "it sends a heartbeat" if silent else "its agent connects and registers again"


def _cordoned(candidate: Candidate) -> Shortfall:
    reason = candidate.record.desired.cordoned or "no reason given"
    return Shortfall("a node that is not cordoned", f"a cordon: {reason}")


def _no_free_slot(candidate: Candidate) -> Shortfall:
    record = candidate.record
    return Shortfall("a free slot", f"{record.in_flight_jobs} of {record.slots} taken")


def _exceeds(candidate: Candidate) -> Shortfall:
    return _use(*(_exceeded(candidate.record, candidate.limits) or ("use", 0.0, 0.0)))


def _exceeded(record: NodeRecord, limits: Thresholds) -> tuple[str, float, float] | None:
    """Name the first figure of the host above its limit, with limit and figure.

    An unknown figure passes, and so does a simulated node: its host's figures are another machine's.
    """
    usage = record.liveness.usage
    if usage is None:
        return None
    if usage.cpu_percent > limits.max_cpu_percent:
        exceeded = "CPU use", limits.max_cpu_percent, usage.cpu_percent
    elif usage.mem_percent > limits.max_memory_percent:
        exceeded = "memory use", limits.max_memory_percent, usage.mem_percent
    else:
        return None
    return None if record.declared.registration.simulated else exceeded


def is_gpu_busy(record: NodeRecord, limits: Thresholds) -> bool:
    """Whether GPU use is above its limit; an unknown figure is not."""
    usage = record.liveness.usage
    return usage is not None and usage.gpu_percent is not None and usage.gpu_percent > limits.max_gpu_percent


def _too_busy(candidate: Candidate, demand: Demand) -> Shortfall | None:
    """Only a job without GPUs of its own waits for GPU use to fall: others get GPUs that nobody uses."""
    return None if demand.sharing is not None else _gpu_use(candidate)


def _jobs_without_gpus(asked: NodeQuestion) -> Iterator[NodeExclusion]:
    shortfall = _gpu_use(asked.candidate)
    if shortfall is not None:
        yield NodeExclusion.of(
            ExclusionReason.RESOURCE_THRESHOLD_EXCEEDED,
            shortfall,
            jobs="jobs without GPUs of their own",
            clears_when="a heartbeat reports less use than that",
        )


def _gpu_use(candidate: Candidate) -> Shortfall | None:
    record, limits, usage = candidate.record, candidate.limits, candidate.record.liveness.usage
    if usage is None or usage.gpu_percent is None or not is_gpu_busy(record, limits):
        return None
    return _use("GPU use", limits.max_gpu_percent, usage.gpu_percent)


def _use(what: str, limit: float, figure: float) -> Shortfall:
    return Shortfall(f"{what} of at most {limit:g} %", f"{figure:g} %")


NODE_FILTERS: tuple[Filter, ...] = (
    _node_state(
        ExclusionReason.STATUS_NOT_READY,
        lambda record, _: record.status is not NodeStatus.READY,
        shortfall=_not_ready,
        clears_when=_when_ready,
    ),
    _node_state(
        ExclusionReason.DISCONNECTED,
        lambda record, _: not record.connected,
        shortfall=_disconnected,
        clears_when=_when_connected,
    ),
    _node_state(
        ExclusionReason.CORDONED,
        lambda record, _: record.desired.cordoned is not None,
        shortfall=_cordoned,
        clears_when=lambda _: "an operator lifts the cordon",
    ),
    _node_state(
        ExclusionReason.CAPACITY_EXCEEDED,
        lambda record, _: record.in_flight_jobs >= record.slots,
        shortfall=_no_free_slot,
        clears_when=lambda _: "one of its jobs ends and its slot is free again",
    ),
    _node_state(
        ExclusionReason.RESOURCE_THRESHOLD_EXCEEDED,
        lambda record, limits: _exceeded(record, limits) is not None,
        shortfall=_exceeds,
        clears_when=lambda _: "a heartbeat reports less use than that",
    ),
    Filter(
        ExclusionReason.RESOURCE_THRESHOLD_EXCEEDED,
        key=GpuKey.BUSY,
        shortfall=_too_busy,
        exclusions=_jobs_without_gpus,
    ),
)
