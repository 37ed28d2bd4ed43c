"""Why a node cannot take a job: the eleven hard filters of §5, in their order.

Each filter says what the job needs and what the node has instead. Rates nobody. Features are the record's
own, which `advanced_features` never decides (A-6).
"""

from collections.abc import Callable
from typing import NamedTuple

from gpu_agent.registry.dispatch import naming
from gpu_agent.registry.dispatch.demand import Demand
from gpu_agent.registry.dispatch.memory import free_mb
from gpu_agent.registry.dispatch.verdict import Excluded, Exclusion
from gpu_agent.registry.dispatch.view import NodeView, usable_gpus
from gpu_agent.registry.quoting import quoted, sentence
from gpu_agent.registry.record import NodeRecord
from gpu_agent.registry.thresholds import Thresholds
from gpu_agent.wire.codes import NodeStatus


class Lack(NamedTuple):
    """What a job needs, and what the node has instead."""

    need: str
    have: str


def exclusion(view: NodeView, demand: Demand) -> Excluded | None:
    """Return the first filter's verdict against a node, or None when the node can take the job."""
    for reason, lacking in FILTERS:
        lack = lacking(view, demand)
        if lack is not None:
            return Excluded(view.record.node_id, reason, sentence(lack.need), sentence(lack.have))
    return None


def barred(record: NodeRecord, in_flight: int, limits: Thresholds) -> Exclusion | None:
    """Return the first reason that holds whatever the job; the same tests, without their words."""
    if record.status is not NodeStatus.READY:
        return Exclusion.STATUS_NOT_READY
    if not record.connected:
        return Exclusion.DISCONNECTED
    if record.cordoned is not None:
        return Exclusion.CORDONED
    if in_flight >= record.max_concurrent_jobs:
        return Exclusion.CAPACITY_EXCEEDED
    if _over_a_limit(record, limits):
        return Exclusion.RESOURCE_THRESHOLD_EXCEEDED
    return None


def has_memory(view: NodeView, demand: Demand) -> bool:
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


def lacking(reason: Exclusion, view: NodeView, demand: Demand) -> Lack | None:
    """Ask one filter alone; None when the node passes it."""
    return _BY_REASON[reason](view, demand)


def without_place(view: NodeView) -> Lack | None:
    """Say that all places of a node are taken; None when one is free."""
    record = view.record
    in_flight = record.in_flight_jobs
    if in_flight < record.max_concurrent_jobs:
        return None
    return Lack("a free place", f"{in_flight} of {record.max_concurrent_jobs} taken")


def without_memory(view: NodeView, demand: Demand) -> Lack | None:
    """Say that too few GPUs have the free memory that a job states; None when enough have."""
    if has_memory(view, demand):
        return None
    free = [free_mb(view.record, gpu, view.promises) for gpu in usable_gpus(view.record, demand.gpu_name)]
    return Lack(f"{demand.memory_mb} MiB free on {_gpus_wanted(demand)}", f"free: {naming.memory(free)}")


def _not_ready(view: NodeView, _demand: Demand) -> Lack | None:
    record = view.record
    if record.status is NodeStatus.READY:
        return None
    return Lack("status ready", f"{record.status} ({record.reason_code})")


def _disconnected(view: NodeView, _demand: Demand) -> Lack | None:
    record = view.record
    if record.connected:
        return None
    return Lack("a live connection", "none" if record.connection is None else "one that is silent, in doubt")


def _cordoned(view: NodeView, _demand: Demand) -> Lack | None:
    why = view.record.cordoned
    return (
        None if why is None else Lack("a node that is not cordoned", f"cordoned: {why or 'no reason given'}")
    )


def _not_allowed(view: NodeView, demand: Demand) -> Lack | None:
    if demand.allowed is None or view.record.node_id in demand.allowed:
        return None
    return Lack(f"one of {naming.listed(demand.allowed)}", view.record.node_id)


def _private(view: NodeView, demand: Demand) -> Lack | None:
    if not demand.job.public or view.record.accept_public_jobs:
        return None
    return Lack("accept_public_jobs", "private or assigned jobs only")


def _too_few_gpus(view: NodeView, demand: Demand) -> Lack | None:
    usable = len(usable_gpus(view.record, demand.gpu_name))
    if usable >= demand.gpu_count:
        return None
    return Lack(f"usable GPUs{_named(demand)}: {demand.gpu_count}", f"{usable} ({naming.gpus(view.record)})")


def _without_model(view: NodeView, demand: Demand) -> Lack | None:
    for model in demand.job.required_models:
        if model not in view.record.ready_models:
            return Lack(f"model {model}", naming.model_state(view.record, model))
    return None


def _without_feature(view: NodeView, demand: Demand) -> Lack | None:
    for feature in demand.job.required_features:
        if feature not in view.record.features:
            return Lack(f"feature {feature}", naming.listed(view.record.features))
    return None


def _mislabelled(view: NodeView, demand: Demand) -> Lack | None:
    labels = view.record.labels
    for name, value in demand.job.labels.items():
        if labels.get(name) != value:
            have = f"{name}={quoted(labels[name])}" if name in labels else f"no {name}"
            return Lack(f"label {name}={value}", have)
    return None


def _without_room(view: NodeView, demand: Demand) -> Lack | None:
    return without_place(view) or without_memory(view, demand)


def _over_limits(view: NodeView, _demand: Demand) -> Lack | None:
    over = _over_a_limit(view.record, view.limits)
    return None if over is None else Lack(f"{over[0]} at most {over[1]:g} %", f"{over[2]:g} %")


_Lacking = Callable[[NodeView, Demand], Lack | None]

FILTERS: tuple[tuple[Exclusion, _Lacking], ...] = (
    (Exclusion.STATUS_NOT_READY, _not_ready),
    (Exclusion.DISCONNECTED, _disconnected),
    (Exclusion.CORDONED, _cordoned),
    (Exclusion.NOT_ALLOWED, _not_allowed),
    (Exclusion.NOT_IN_PUBLIC_POOL, _private),
    (Exclusion.GPU_UNAVAILABLE, _too_few_gpus),
    (Exclusion.MODEL_NOT_AVAILABLE, _without_model),
    (Exclusion.FEATURE_NOT_SUPPORTED, _without_feature),
    (Exclusion.LABEL_MISMATCH, _mislabelled),
    (Exclusion.CAPACITY_EXCEEDED, _without_room),
    (Exclusion.RESOURCE_THRESHOLD_EXCEEDED, _over_limits),
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
