"""Explain a node: which jobs it is excluded from at this moment, why, and what would change that.

An exclusion may pass: a status, a failed GPU, a model that is not ready, no free slot. A *limit* is what the node is: so
many GPUs, these models, those labels. Both together are exact: the filters of dispatch exclude the node from a job if
and only if one of them covers the job.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from gpu_agent.registry import status as telling
from gpu_agent.registry.dispatch import filters
from gpu_agent.registry.dispatch import filters as naming
from gpu_agent.registry.dispatch.candidate import Candidate, free_mb, usable_gpus
from gpu_agent.registry.dispatch.filters import Shortfall, listed
from gpu_agent.registry.dispatch.refusals import ExclusionReason
from gpu_agent.registry.job import Demand, Job
from gpu_agent.registry.node import NodeRecord
from gpu_agent.registry.quoting import quoted, sentence

# Which jobs something about a node refuses: as data that can be asked, and as words.
#
# Exact: a scope covers a job just when the filter of its reason refuses it. Finds nothing out about nodes.


@dataclass(frozen=True, slots=True)
class EveryJob:
    """Whatever the job."""

    def covers(self, _demand: Demand) -> bool:
        """Say whether a job is refused."""
        return True

    def __str__(self) -> str:
        return "every job"


@dataclass(frozen=True, slots=True)
class JobsNotAllowed:
    """Jobs that may run on other nodes only."""

    node_id: str

    def covers(self, demand: Demand) -> bool:
        """Say whether a job is refused."""
        return demand.allowed is not None and self.node_id not in demand.allowed

    def __str__(self) -> str:
        return "jobs whose allowed_nodes leave it out"


@dataclass(frozen=True, slots=True)
class PublicJobs:
    """Jobs of the public pool."""

    def covers(self, demand: Demand) -> bool:
        """Say whether a job is refused."""
        return demand.job.public

    def __str__(self) -> str:
        return "public jobs"


@dataclass(frozen=True, slots=True)
class JobsOfMoreGpus:
    """Jobs that need more usable GPUs of a name than there are."""

    gpus: tuple[tuple[str, int], ...]
    """How many of each name."""

    def covers(self, demand: Demand) -> bool:
        """Say whether a job is refused."""
        named = sum(count for name, count in self.gpus if demand.gpu_name in name.lower())
        return named < demand.gpu_count

    def __str__(self) -> str:
        total = sum(count for _, count in self.gpus)
        if len(self.gpus) > 1:
            each = ", ".join(f"{count} {quoted(name)}" for name, count in self.gpus)
            return f"jobs that need more than {total} GPUs ({each}), or GPUs of another name"
        other = f", or GPUs that are no {quoted(self.gpus[0][0])}" if self.gpus else ""
        return f"jobs that need more than {total} GPU{'' if total == 1 else 's'}{other}"


@dataclass(frozen=True, slots=True)
class JobsWithModel:
    """Jobs that need a certain model."""

    model_id: str

    def covers(self, demand: Demand) -> bool:
        """Say whether a job is refused."""
        return self.model_id in demand.job.required_models

    def __str__(self) -> str:
        return f"jobs that need model {quoted(self.model_id)}"


@dataclass(frozen=True, slots=True)
class JobsWithOtherModels:
    """Jobs that need a model which is not ready."""

    ready: frozenset[str]

    def covers(self, demand: Demand) -> bool:
        """Say whether a job is refused."""
        return not self.ready.issuperset(demand.job.required_models)

    def __str__(self) -> str:
        return (
            f"jobs that need any model but {listed(self.ready)}" if self.ready else "jobs that need a model"
        )


@dataclass(frozen=True, slots=True)
class JobsWithOtherFeatures:
    """Jobs that need a feature which the node does not claim."""

    features: frozenset[str]

    def covers(self, demand: Demand) -> bool:
        """Say whether a job is refused."""
        return not self.features.issuperset(demand.job.required_features)

    def __str__(self) -> str:
        had = listed(self.features)
        return f"jobs that need any feature but {had}" if self.features else "jobs that need a feature"


@dataclass(frozen=True, slots=True)
class JobsWithOtherLabels:
    """Jobs that ask for a label which the node does not carry."""

    labels: Mapping[str, str]

    def covers(self, demand: Demand) -> bool:
        """Say whether a job is refused."""
        return not self.labels.items() >= demand.job.labels.items()

    def __str__(self) -> str:
        carried = listed(f"{name}={value}" for name, value in self.labels.items())
        return f"jobs that ask for any label but {carried}" if self.labels else "jobs that ask for a label"


@dataclass(frozen=True, slots=True)
class JobsOfMoreMemory:
    """Jobs that need more free GPU memory than there is."""

    free: tuple[tuple[str, int | None], ...]
    """The name and the free memory (MiB; None when unknown) of each usable GPU."""

    def covers(self, demand: Demand) -> bool:
        """Say whether a job is refused."""
        if not demand.memory_mb:
            return False
        enough = sum(
            free is not None and free >= demand.memory_mb and demand.gpu_name in name.lower()
            for name, free in self.free
        )
        return enough < demand.gpu_count

    def __str__(self) -> str:
        freest = sorted((max(free, 0) for _, free in self.free if free is not None), reverse=True)
        if not freest:
            return "jobs that state a need of GPU memory"
        more = [f"on each of {place}: {free}" for place, free in enumerate(freest[1:], start=2) if free]
        besides = f" ({listed(more, in_order=True)})" if more else ""
        return f"jobs that need more than {freest[0]} MiB of GPU memory{besides}"


Scope = (
    EveryJob
    | JobsNotAllowed
    | PublicJobs
    | JobsOfMoreGpus
    | JobsWithModel
    | JobsWithOtherModels
    | JobsWithOtherFeatures
    | JobsWithOtherLabels
    | JobsOfMoreMemory
)


# What stands against a node at this moment, and which jobs it refuses because of it.
#
# An *objection* may pass: a status, a lost GPU, a model that is not ready, no free place. A *limit* is
# what
# the node is: it has so many GPUs, these models, those labels. Both together are exact: the filters of
# dispatch refuse a job just when one of them covers it. Judges by those filters; changes nothing.


MOST_MODELS = 32
"""So many models that are not ready are named one by one; the limit on models covers the rest."""

_ANY_JOB = Job(job_id="any")


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeExclusion:
    """One reason for which a node refuses some jobs."""

    reason: ExclusionReason
    scope: Scope
    need: str
    have: str
    clears_when: str

    @property
    def refuses(self) -> str:
        """Which jobs are refused, in words."""
        return sentence(str(self.scope))


def exclusions(view: Candidate, now: float, model: str | None) -> Iterator[NodeExclusion]:
    """Find what stands against a node, in the order of the filters; `model` is named whatever it is."""
    record = view.record
    yield from _standing(view, now)
    yield from _found(
        view,
        ExclusionReason.NOT_IN_PUBLIC_POOL,
        replace(_ANY_JOB, public=True),
        scope=PublicJobs(),
        clears_when="its agent sets accept_public_jobs",
    )
    if not _all_usable(record):
        yield from _gpus(view, clears_when="the GPUs that are not usable recover")
    for one in _unready_models(record, model):
        yield from _found(
            view,
            ExclusionReason.MODEL_NOT_AVAILABLE,
            replace(_ANY_JOB, required_models=(one,)),
            scope=JobsWithModel(one),
            clears_when=_when_ready(record, one),
        )
    yield from _room(view)


def limits(view: Candidate) -> Iterator[NodeExclusion]:
    """Tell what the node is, in the order of the filters."""
    record = view.record
    yield _objection(
        ExclusionReason.NOT_ALLOWED,
        Shortfall("allowed_nodes that name it, or none", record.node_id),
        scope=JobsNotAllowed(record.node_id),
        clears_when="the job allows this node",
    )
    if _all_usable(record):
        yield from _gpus(view, clears_when="other GPUs are put in")
    yield _objection(
        ExclusionReason.MODEL_NOT_AVAILABLE,
        Shortfall("every model that it names ready", f"ready: {naming.listed(record.ready_models)}"),
        scope=JobsWithOtherModels(record.ready_models),
        clears_when="the model is installed, enabled and ready there",
    )
    yield _objection(
        ExclusionReason.FEATURE_NOT_SUPPORTED,
        Shortfall("every feature that it names", naming.listed(record.features)),
        scope=JobsWithOtherFeatures(record.features),
        clears_when="its agent claims the feature under [features]",
    )
    labels = dict(record.labels)
    carried = naming.listed(f"{name}={value}" for name, value in labels.items())
    yield _objection(
        ExclusionReason.LABEL_MISMATCH,
        Shortfall("every label that it names", carried),
        scope=JobsWithOtherLabels(labels),
        clears_when="its agent sets the label under [labels]",
    )
    yield _memory(view)


def _standing(view: Candidate, now: float) -> Iterator[NodeExclusion]:
    """Find what bars the node whatever the job, but for room."""
    record = view.record
    came_back = "its agent connects and registers again" if record.connection is None else "it beats again"
    for reason, clears_when in (
        (ExclusionReason.STATUS_NOT_READY, telling.clears_when(record, view.limits, now) or ""),
        (ExclusionReason.DISCONNECTED, came_back),
        (ExclusionReason.CORDONED, "an operator lifts the cordon"),
    ):
        yield from _found(view, reason, _ANY_JOB, scope=EveryJob(), clears_when=clears_when)


def _room(view: Candidate) -> Iterator[NodeExclusion]:
    full = filters.no_free_slot(view)
    if full is not None:
        ends = "one of its jobs ends and its place is given back"
        yield _objection(ExclusionReason.CAPACITY_EXCEEDED, full, scope=EveryJob(), clears_when=ends)
    yield from _found(
        view,
        ExclusionReason.RESOURCE_THRESHOLD_EXCEEDED,
        _ANY_JOB,
        scope=EveryJob(),
        clears_when="a beat tells less use than that",
    )


def _gpus(view: Candidate, *, clears_when: str) -> Iterator[NodeExclusion]:
    usable = usable_gpus(view.record, "")
    named = Counter(gpu.name for gpu in usable)
    yield from _found(
        view,
        ExclusionReason.GPU_UNAVAILABLE,
        replace(_ANY_JOB, gpu_count=len(usable) + 1),
        scope=JobsOfMoreGpus(tuple(sorted(named.items()))),
        clears_when=clears_when,
    )


def _memory(view: Candidate) -> NodeExclusion:
    record = view.record
    usable = usable_gpus(record, "")
    free = [free_mb(record, gpu, view.promises) for gpu in usable]
    freest = max(0, 0, *(one for one in free if one is not None))
    largest = max(0, 0, *(gpu.memory_mb for gpu in usable if gpu.memory_mb is not None))
    return _objection(
        ExclusionReason.CAPACITY_EXCEEDED,
        Shortfall(f"more than {freest} MiB free", f"free: {naming.memory(free)}"),
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
    view: Candidate, reason: ExclusionReason, job: Job, *, scope: Scope, clears_when: str
) -> Iterator[NodeExclusion]:
    """Ask one filter about a job that the scope covers; nothing where the node passes."""
    lack = filters.shortfall(reason, view, Demand.of(job))
    if lack is not None:
        yield _objection(reason, lack, scope=scope, clears_when=clears_when)


def _objection(reason: ExclusionReason, lack: Shortfall, *, scope: Scope, clears_when: str) -> NodeExclusion:
    return NodeExclusion(
        reason=reason,
        scope=scope,
        need=sentence(lack.need),
        have=sentence(lack.have),
        clears_when=sentence(clears_when),
    )


# A node's account of itself to those who wonder why it gets no job: what stands against it, what it is.
#
# Composes what `objections` finds with the state of one model; judges nothing.


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelVersion:
    """One installed version of a model; `status` is the node's own word for it."""

    version: str
    enabled: bool
    status: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelState:
    """How it stands with one model on a node."""

    model_id: str
    ready: bool
    state: str
    """`ready`, `disabled`, `not installed`, or the status of the first enabled version."""
    versions: tuple[ModelVersion, ...]
    reported: str | None
    """What `capability_state` says of it, which goes before the versions' own status."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeExplanation:
    """A node's account of itself to those who wonder why it gets no job."""

    node_id: str
    objections: tuple[NodeExclusion, ...]
    """In the order of the filters; empty for a node that takes every job within its limits."""
    limits: tuple[NodeExclusion, ...]
    model: ModelState | None = None

    @property
    def refuses_every_job(self) -> bool:
        """True while no job at all may come."""
        return any(isinstance(one.scope, EveryJob) for one in self.objections)


def explain_node(view: Candidate, now: float, model: str | None = None) -> NodeExplanation:
    """Give the account of one node; `model` asks for the state of that model besides."""
    record = view.record
    return NodeExplanation(
        node_id=record.node_id,
        objections=tuple(exclusions(view, now, model)),
        limits=tuple(limits(view)),
        model=None if model is None else _model(record, model),
    )


def _model(record: NodeRecord, model: str) -> ModelState:
    installed = [one for one in record.models if one.model_id == model]
    return ModelState(
        model_id=model,
        ready=model in record.ready_models,
        state=naming.model_state(record, model),
        versions=tuple(
            ModelVersion(version=one.version, enabled=one.enabled, status=quoted(one.status))
            for one in installed
        ),
        reported=(record.capability_state or {}).get(model),
    )
