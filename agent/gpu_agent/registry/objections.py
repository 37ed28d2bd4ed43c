"""What stands against a node at this moment, and which jobs it refuses because of it.

An *objection* may pass: a status, a lost GPU, a model that is not ready, no free place. A *limit* is what
the node is: it has so many GPUs, these models, those labels. Both together are exact: the filters of
dispatch refuse a job just when one of them covers it. Judges by those filters; changes nothing.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

from gpu_agent.registry import telling
from gpu_agent.registry.dispatch import filters, naming
from gpu_agent.registry.dispatch.demand import Demand
from gpu_agent.registry.dispatch.filters import Lack
from gpu_agent.registry.dispatch.memory import free_mb
from gpu_agent.registry.dispatch.scope import (
    EveryJob,
    JobsForOthers,
    JobsOfMoreGpus,
    JobsOfMoreMemory,
    JobsWithModel,
    JobsWithOtherFeatures,
    JobsWithOtherLabels,
    JobsWithOtherModels,
    PublicJobs,
    Scope,
)
from gpu_agent.registry.dispatch.verdict import Exclusion
from gpu_agent.registry.dispatch.view import NodeView, usable_gpus
from gpu_agent.registry.job import Job
from gpu_agent.registry.quoting import sentence
from gpu_agent.registry.record import NodeRecord

MOST_MODELS = 32
"""So many models that are not ready are named one by one; the limit on models covers the rest."""

_ANY_JOB = Job(job_id="any")


@dataclass(frozen=True, slots=True, kw_only=True)
class Objection:
    """One reason for which a node refuses some jobs."""

    reason: Exclusion
    scope: Scope
    need: str
    have: str
    clears_when: str

    @property
    def refuses(self) -> str:
        """Which jobs are refused, in words."""
        return sentence(str(self.scope))


def objections(view: NodeView, now: float, model: str | None) -> Iterator[Objection]:
    """Find what stands against a node, in the order of the filters; `model` is named whatever it is."""
    record = view.record
    yield from _standing(view, now)
    yield from _found(
        view,
        Exclusion.NOT_IN_PUBLIC_POOL,
        replace(_ANY_JOB, public=True),
        scope=PublicJobs(),
        clears_when="its agent sets accept_public_jobs",
    )
    if not _all_usable(record):
        yield from _gpus(view, clears_when="the GPUs that are not usable recover")
    for one in _unready_models(record, model):
        yield from _found(
            view,
            Exclusion.MODEL_NOT_AVAILABLE,
            replace(_ANY_JOB, required_models=(one,)),
            scope=JobsWithModel(one),
            clears_when=_when_ready(record, one),
        )
    yield from _room(view)


def limits(view: NodeView) -> Iterator[Objection]:
    """Tell what the node is, in the order of the filters."""
    record = view.record
    yield _objection(
        Exclusion.NOT_ALLOWED,
        Lack("allowed_nodes that name it, or none", record.node_id),
        scope=JobsForOthers(record.node_id),
        clears_when="the job allows this node",
    )
    if _all_usable(record):
        yield from _gpus(view, clears_when="other GPUs are put in")
    yield _objection(
        Exclusion.MODEL_NOT_AVAILABLE,
        Lack("every model that it names ready", f"ready: {naming.listed(record.ready_models)}"),
        scope=JobsWithOtherModels(record.ready_models),
        clears_when="the model is installed, enabled and ready there",
    )
    yield _objection(
        Exclusion.FEATURE_NOT_SUPPORTED,
        Lack("every feature that it names", naming.listed(record.features)),
        scope=JobsWithOtherFeatures(record.features),
        clears_when="its agent claims the feature under [features]",
    )
    labels = dict(record.labels)
    carried = naming.listed(f"{name}={value}" for name, value in labels.items())
    yield _objection(
        Exclusion.LABEL_MISMATCH,
        Lack("every label that it names", carried),
        scope=JobsWithOtherLabels(labels),
        clears_when="its agent sets the label under [labels]",
    )
    yield _memory(view)


def _standing(view: NodeView, now: float) -> Iterator[Objection]:
    """Find what bars the node whatever the job, but for room."""
    record = view.record
    came_back = "its agent connects and registers again" if record.connection is None else "it beats again"
    for reason, clears_when in (
        (Exclusion.STATUS_NOT_READY, telling.clears_when(record, view.limits, now) or ""),
        (Exclusion.DISCONNECTED, came_back),
        (Exclusion.CORDONED, "an operator lifts the cordon"),
    ):
        yield from _found(view, reason, _ANY_JOB, scope=EveryJob(), clears_when=clears_when)


def _room(view: NodeView) -> Iterator[Objection]:
    full = filters.without_place(view)
    if full is not None:
        ends = "one of its jobs ends and its place is given back"
        yield _objection(Exclusion.CAPACITY_EXCEEDED, full, scope=EveryJob(), clears_when=ends)
    yield from _found(
        view,
        Exclusion.RESOURCE_THRESHOLD_EXCEEDED,
        _ANY_JOB,
        scope=EveryJob(),
        clears_when="a beat tells less use than that",
    )


def _gpus(view: NodeView, *, clears_when: str) -> Iterator[Objection]:
    usable = usable_gpus(view.record, "")
    named = Counter(gpu.name for gpu in usable)
    yield from _found(
        view,
        Exclusion.GPU_UNAVAILABLE,
        replace(_ANY_JOB, gpu_count=len(usable) + 1),
        scope=JobsOfMoreGpus(tuple(sorted(named.items()))),
        clears_when=clears_when,
    )


def _memory(view: NodeView) -> Objection:
    record = view.record
    usable = usable_gpus(record, "")
    free = [free_mb(record, gpu, view.promises) for gpu in usable]
    freest = max(0, 0, *(one for one in free if one is not None))
    largest = max(0, 0, *(gpu.memory_mb for gpu in usable if gpu.memory_mb is not None))
    return _objection(
        Exclusion.CAPACITY_EXCEEDED,
        Lack(f"more than {freest} MiB free", f"free: {naming.memory(free)}"),
        scope=JobsOfMoreMemory(tuple((gpu.name, one) for gpu, one in zip(usable, free, strict=True))),
        clears_when="jobs end and free it" if freest < largest else "larger GPUs are put in",
    )


def _all_usable(record: NodeRecord) -> bool:
    return all(gpu.usable or gpu.is_parent for gpu in record.gpus.values())


def _unready_models(record: NodeRecord, asked: str | None) -> list[str]:
    """List models that are installed and not ready, the one that was asked for first."""
    installed = {one.model_id for one in record.models} - record.ready_models
    first = [] if asked is None or asked in record.ready_models else [asked]
    return [*first, *sorted(installed.difference(first))][:MOST_MODELS]


def _when_ready(record: NodeRecord, model: str) -> str:
    match naming.model_state(record, model):
        case "not installed":
            return "it is installed there"
        case "disabled":
            return "its agent enables it"
        case "downloading":
            return "its download ends"
        case state:
            return f"the node reports it ready, now {state}"


def _found(
    view: NodeView, reason: Exclusion, job: Job, *, scope: Scope, clears_when: str
) -> Iterator[Objection]:
    """Ask one filter about a job that the scope covers; nothing where the node passes."""
    lack = filters.lacking(reason, view, Demand.of(job))
    if lack is not None:
        yield _objection(reason, lack, scope=scope, clears_when=clears_when)


def _objection(reason: Exclusion, lack: Lack, *, scope: Scope, clears_when: str) -> Objection:
    return Objection(
        reason=reason,
        scope=scope,
        need=sentence(lack.need),
        have=sentence(lack.have),
        clears_when=sentence(clears_when),
    )
