"""Why a node cannot take a job: the eleven hard filters of §5, in their order.

Each filter says what the job needs and what the node has instead.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple

from gpu_agent.registry.dispatch.candidate import Candidate, free_mb, usable_gpus
from gpu_agent.registry.dispatch.refusals import Excluded, ExclusionReason
from gpu_agent.registry.job import Demand
from gpu_agent.registry.node import NodeRecord
from gpu_agent.registry.quoting import quoted, sentence
from gpu_agent.registry.settings import Thresholds
from gpu_agent.wire.codes import NodeStatus

# Why a node cannot take a job: the eleven hard filters of §5, in their order.
#
# Each filter says what the job needs and what the node has instead. Rates nobody. Features are the
# record's
# own, which `advanced_features` never decides.


class Shortfall(NamedTuple):
    """What a job needs, and what the node has instead."""

    need: str
    have: str


def first_exclusion(view: Candidate, demand: Demand) -> Excluded | None:
    """Return the first filter's verdict against a node, or None when the node can take the job."""
    for reason, lacking in FILTERS:
        lack = lacking(view, demand)
        if lack is not None:
            return Excluded(view.record.node_id, reason, sentence(lack.need), sentence(lack.have))
    return None


def unschedulable_reason(record: NodeRecord, in_flight: int, limits: Thresholds) -> ExclusionReason | None:
    """Return the first reason that holds whatever the job; the same tests, without their words."""
    if record.status is not NodeStatus.READY:
        return ExclusionReason.STATUS_NOT_READY
    if not record.connected:
        return ExclusionReason.DISCONNECTED
    if record.cordoned is not None:
        return ExclusionReason.CORDONED
    if in_flight >= record.max_concurrent_jobs:
        return ExclusionReason.CAPACITY_EXCEEDED
    if _over_a_limit(record, limits):
        return ExclusionReason.RESOURCE_THRESHOLD_EXCEEDED
    return None


def has_memory(view: Candidate, demand: Demand) -> bool:
    """Say whether enough GPUs of the name have the free memory that a job states; unknown memory has not."""
    needed = demand.memory_mb
    if not needed:
        return True
    record, promises, wanting = view.record, view.promises, demand.gpu_count
    for gpu in usable_gpus(record, demand.gpu_name):
        free = free_mb(record, gpu, promises)
        if free is not None and free >= needed:
            wanting -= 1
    return wanting <= 0


def shortfall(reason: ExclusionReason, view: Candidate, demand: Demand) -> Shortfall | None:
    """Ask one filter alone; None when the node passes it."""
    return _BY_REASON[reason](view, demand)


def no_free_slot(view: Candidate) -> Shortfall | None:
    """Say that all places of a node are taken; None when one is free."""
    record = view.record
    in_flight = record.in_flight_jobs
    if in_flight < record.max_concurrent_jobs:
        return None
    return Shortfall("a free place", f"{in_flight} of {record.max_concurrent_jobs} taken")


def too_little_memory(view: Candidate, demand: Demand) -> Shortfall | None:
    """Say that too few GPUs have the free memory that a job states; None when enough have."""
    if has_memory(view, demand):
        return None
    free = [free_mb(view.record, gpu, view.promises) for gpu in usable_gpus(view.record, demand.gpu_name)]
    return Shortfall(f"{demand.memory_mb} MiB free on {_gpus_wanted(demand)}", f"free: {memory(free)}")


def _not_ready(view: Candidate, _demand: Demand) -> Shortfall | None:
    record = view.record
    if record.status is NodeStatus.READY:
        return None
    return Shortfall("status ready", f"{record.status} ({record.reason_code})")


def _disconnected(view: Candidate, _demand: Demand) -> Shortfall | None:
    record = view.record
    if record.connected:
        return None
    return Shortfall(
        "a live connection", "none" if record.connection is None else "one that is silent, in doubt"
    )


def _cordoned(view: Candidate, _demand: Demand) -> Shortfall | None:
    why = view.record.cordoned
    return (
        None
        if why is None
        else Shortfall("a node that is not cordoned", f"cordoned: {why or 'no reason given'}")
    )


def _not_allowed(view: Candidate, demand: Demand) -> Shortfall | None:
    if demand.allowed is None or view.record.node_id in demand.allowed:
        return None
    return Shortfall(f"one of {listed(demand.allowed)}", view.record.node_id)


def _private(view: Candidate, demand: Demand) -> Shortfall | None:
    if not demand.job.public or view.record.accept_public_jobs:
        return None
    return Shortfall("accept_public_jobs", "private or assigned jobs only")


def _too_few_gpus(view: Candidate, demand: Demand) -> Shortfall | None:
    usable = len(usable_gpus(view.record, demand.gpu_name))
    if usable >= demand.gpu_count:
        return None
    return Shortfall(f"usable GPUs{_named(demand)}: {demand.gpu_count}", f"{usable} ({gpus(view.record)})")


def _without_model(view: Candidate, demand: Demand) -> Shortfall | None:
    for model in demand.job.required_models:
        if model not in view.record.ready_models:
            return Shortfall(f"model {model}", model_state(view.record, model))
    return None


def _without_feature(view: Candidate, demand: Demand) -> Shortfall | None:
    for feature in demand.job.required_features:
        if feature not in view.record.features:
            return Shortfall(f"feature {feature}", listed(view.record.features))
    return None


def _mislabelled(view: Candidate, demand: Demand) -> Shortfall | None:
    labels = view.record.labels
    for name, value in demand.job.labels.items():
        if labels.get(name) != value:
            have = f"{name}={quoted(labels[name])}" if name in labels else f"no {name}"
            return Shortfall(f"label {name}={value}", have)
    return None


def _without_room(view: Candidate, demand: Demand) -> Shortfall | None:
    return no_free_slot(view) or too_little_memory(view, demand)


def _over_limits(view: Candidate, _demand: Demand) -> Shortfall | None:
    over = _over_a_limit(view.record, view.limits)
    return None if over is None else Shortfall(f"{over[0]} at most {over[1]:g} %", f"{over[2]:g} %")


_Lacking = Callable[[Candidate, Demand], Shortfall | None]

FILTERS: tuple[tuple[ExclusionReason, _Lacking], ...] = (
    (ExclusionReason.STATUS_NOT_READY, _not_ready),
    (ExclusionReason.DISCONNECTED, _disconnected),
    (ExclusionReason.CORDONED, _cordoned),
    (ExclusionReason.NOT_ALLOWED, _not_allowed),
    (ExclusionReason.NOT_IN_PUBLIC_POOL, _private),
    (ExclusionReason.GPU_UNAVAILABLE, _too_few_gpus),
    (ExclusionReason.MODEL_NOT_AVAILABLE, _without_model),
    (ExclusionReason.FEATURE_NOT_SUPPORTED, _without_feature),
    (ExclusionReason.LABEL_MISMATCH, _mislabelled),
    (ExclusionReason.CAPACITY_EXCEEDED, _without_room),
    (ExclusionReason.RESOURCE_THRESHOLD_EXCEEDED, _over_limits),
)
_BY_REASON = dict(FILTERS)


def _over_a_limit(record: NodeRecord, limits: Thresholds) -> tuple[str, float, float] | None:
    """Name the first figure above its limit, with limit and figure; an unknown figure passes."""
    usage = record.usage
    if usage is None:
        return None
    if usage.cpu_percent > limits.max_cpu_percent:
        return "CPU use", limits.max_cpu_percent, usage.cpu_percent
    if usage.gpu_percent is not None and usage.gpu_percent > limits.max_gpu_percent:
        return "GPU use", limits.max_gpu_percent, usage.gpu_percent
    if usage.mem_percent > limits.max_memory_percent:
        return "memory use", limits.max_memory_percent, usage.mem_percent
    return None


def _gpus_wanted(demand: Demand) -> str:
    each = "1 GPU" if demand.gpu_count == 1 else f"each of {demand.gpu_count} GPUs"
    return each + _named(demand)


def _named(demand: Demand) -> str:
    return f" named {demand.job.gpu_name}" if demand.gpu_name else ""


# Names and GPUs in the sentences of dispatch, for a person: a few of many, and never too long.


SHOWN_NAMES = 8


def listed(names: Iterable[str], *, in_order: bool = False, empty: str = "none") -> str:
    """List some names, sorted unless they come in an order of their own."""
    known = list(names) if in_order else sorted(names)
    shown = known[:SHOWN_NAMES]
    more = len(known) - len(shown)
    return ", ".join(map(quoted, shown)) + (f" and {more} more" if more else "") if shown else empty


def gpus(record: NodeRecord) -> str:
    """List a node's GPUs with the health of each; those that are alike are counted."""
    alike = Counter((gpu.name, "MIG parent" if gpu.is_parent else gpu.health) for gpu in record.gpus.values())
    parts = (
        f"{f'{count}x ' if count > 1 else ''}{quoted(name)} {quoted(state)}"
        for (name, state), count in alike.items()
    )
    return listed(parts, in_order=True) if alike else "no GPU"


def memory(free: Iterable[int | None]) -> str:
    """List free memory, GPU by GPU."""
    return listed(
        ("unknown" if one is None else f"{max(one, 0)} MiB" for one in free), in_order=True, empty="no GPU"
    )


def model_state(record: NodeRecord, model: str) -> str:
    """Say what a node has of a model: `ready`, `disabled`, `not installed`, or what its own word is."""
    installed = [one for one in record.models if one.model_id == model]
    if model in record.ready_models:
        return "ready"
    if not installed:
        return "not installed"
    if not any(one.enabled for one in installed):
        return "disabled"
    stated = (record.capability_state or {}).get(model)
    return quoted(stated or next(one.status for one in installed if one.enabled))
