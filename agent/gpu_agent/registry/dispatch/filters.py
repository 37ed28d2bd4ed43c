"""The hard filters of §5: why a node cannot take a job.

Each is one row of `FILTERS`, in the order of the protocol.

A row states a filter once:

- its reason;
- its key: how the index finds the nodes that pass, without looking at each node;
- its shortfall: the predicate of one node and one job; it answers what the job needs and what the node has;
- its exclusions: the jobs that it excludes from one node, and what would change that, for a person who asks.

The index, the explanation of a job and the explanation of a node all go through this table.

A filter depends on one node and one job only, never on other nodes, on the clock or on chance: the index
remembers its answers. To add a filter, write its functions beside those of its kind, and add one row at its
place in the order. A row for a new reason also needs a member of `wire.codes.ExclusionReason` at the same
place, and a line of the table in `docs/operating.md`. Several rows may share a reason. A filter by something
that neither a node's state nor its keys can express needs a kind of key of its own, and a `case` in
`Index._query`.
`advanced_features` never decides whether a node has a feature (A-6).
"""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import KW_ONLY, dataclass
from enum import Enum, auto
from typing import NamedTuple, TypeVar

from gpu_agent.registry import lifecycle
from gpu_agent.registry.dispatch.candidate import Candidate, free_mb, usable_gpus
from gpu_agent.registry.dispatch.exclusions import Excluded
from gpu_agent.registry.job import Demand
from gpu_agent.registry.node import NodeRecord
from gpu_agent.registry.quoting import clip_quote, clip_sentence
from gpu_agent.registry.settings import Thresholds
from gpu_agent.wire.codes import ExclusionReason, NodeStatus

SHOWN_NAMES = 8
MOST_MODELS = 32
"""So many models that are not ready are named one by one; the limit on models covers the rest."""

EVERY_JOB = "every job"

_PUBLIC = frozenset({"public"})

_Key = TypeVar("_Key", bound=Hashable)


class Shortfall(NamedTuple):
    """What a job needs, and what the node has instead."""

    need: str
    have: str


@dataclass(frozen=True, slots=True)
class NodeState:
    """The index holds the nodes that this excludes whatever the job; one set for each reason."""

    excludes: Callable[[NodeRecord, Thresholds], bool]


@dataclass(frozen=True, slots=True)
class NodeIds:
    """The job names the nodes that pass; None for all."""

    of_job: Callable[[Demand], frozenset[str] | None]


@dataclass(frozen=True, slots=True)
class Keys:
    """The index holds the nodes that have a key; a node passes that has all of the job's keys.

    The keys follow from what the node declares.
    """

    of_node: Callable[[NodeRecord], AbstractSet[Hashable]]
    of_job: Callable[[Demand], Iterable[Hashable]]


class GpuKey(Enum):
    """What the index holds of a node's usable GPUs."""

    COUNT = auto()
    """How many there are of each name."""
    FREE_MEMORY = auto()
    """How much memory is free on them, in steps: a node that passes the index may still fail the filter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeExclusion:
    """Jobs that one filter excludes from a node."""

    reason: ExclusionReason
    jobs: str
    """Which jobs, in words."""
    need: str
    have: str
    clears_when: str
    is_limit: bool
    """True for what the node is, as opposed to a state that may pass."""


class NodeQuestion(NamedTuple):
    """A node to explain; `model` is named whatever its state."""

    candidate: Candidate
    now: float
    model: str | None = None


@dataclass(frozen=True, slots=True)
class Filter:
    """One row of the table."""

    reason: ExclusionReason
    _: KW_ONLY
    key: NodeState | NodeIds | Keys | GpuKey
    shortfall: Callable[[Candidate, Demand], Shortfall | None]
    """None when the node passes."""
    exclusions: Callable[[NodeQuestion], Iterator[NodeExclusion]]


def first_exclusion(candidate: Candidate, demand: Demand) -> Excluded | None:
    """Return the first filter that a node fails, or None when the node can take the job."""
    for one in FILTERS:
        shortfall = one.shortfall(candidate, demand)
        if shortfall is not None:
            need, have = clip_sentence(shortfall.need), clip_sentence(shortfall.have)
            return Excluded(candidate.record.node_id, one.reason, need, have)
    return None


def unschedulable_reason(record: NodeRecord, limits: Thresholds) -> ExclusionReason | None:
    """Return the first reason that excludes a node whatever the job; None when it is open to jobs."""
    for reason, excludes in _NODE_STATES:
        if excludes(record, limits):
            return reason
    return None


def has_memory(candidate: Candidate, demand: Demand) -> bool:
    """Say whether enough GPUs of the name have the free memory that a job needs; unknown is not enough."""
    needed = demand.memory_mb
    if not needed:
        return True
    record, reserved, missing = candidate.record, candidate.reserved, demand.gpu_count
    for gpu in usable_gpus(record, demand.gpu_name):
        free = free_mb(record, gpu, reserved)
        if free is not None and free >= needed:
            missing -= 1
    return missing <= 0


def model_state(record: NodeRecord, model: str) -> str:
    """Return the state of a model on a node: `ready`, `disabled`, `not installed`, or what it reports."""
    if model in record.declared.ready_models:
        return "ready"
    registration = record.declared.registration
    installed = [one for one in registration.installed_models if one.model_id == model]
    if not installed:
        return "not installed"
    if not any(one.enabled for one in installed):
        return "disabled"
    stated = (registration.capability_state or {}).get(model)
    return clip_quote(stated or next(one.status for one in installed if one.enabled))


def listed(names: Iterable[str], *, in_order: bool = False, empty: str = "none") -> str:
    """List a few of many names, sorted unless they come in an order of their own."""
    known = list(names) if in_order else sorted(names)
    shown = known[:SHOWN_NAMES]
    more = len(known) - len(shown)
    return ", ".join(map(clip_quote, shown)) + (f" and {more} more" if more else "") if shown else empty


# Filters that exclude a node whatever the job.


def _node_state(
    reason: ExclusionReason,
    excludes: Callable[[NodeRecord, Thresholds], bool],
    *,
    shortfall: Callable[[Candidate], Shortfall],
    clears_when: Callable[[NodeQuestion], str],
) -> Filter:
    """Make the row of a filter that excludes a node from every job."""

    def of_job(candidate: Candidate, _demand: Demand) -> Shortfall | None:
        return shortfall(candidate) if excludes(candidate.record, candidate.limits) else None

    def exclusions(asked: NodeQuestion) -> Iterator[NodeExclusion]:
        candidate = asked.candidate
        if excludes(candidate.record, candidate.limits):
            yield _exclusion(reason, shortfall(candidate), jobs=EVERY_JOB, clears_when=clears_when(asked))

    return Filter(reason, key=NodeState(excludes), shortfall=of_job, exclusions=exclusions)


def _not_ready(candidate: Candidate) -> Shortfall:
    record = candidate.record
    return Shortfall("status ready", f"{record.status} ({record.reason_code})")


def _when_ready(asked: NodeQuestion) -> str:
    candidate = asked.candidate
    return lifecycle.clears_when(candidate.record, candidate.limits, asked.now) or ""


def _disconnected(candidate: Candidate) -> Shortfall:
    silent = candidate.record.connection is not None
    return Shortfall("a live connection", "one that is silent" if silent else "none")


def _when_connected(asked: NodeQuestion) -> str:
    silent = asked.candidate.record.connection is not None
    return "it sends a heartbeat" if silent else "its agent connects and registers again"


def _cordoned(candidate: Candidate) -> Shortfall:
    reason = candidate.record.desired.cordoned or "no reason given"
    return Shortfall("a node that is not cordoned", f"cordoned: {reason}")


def _no_free_slot(candidate: Candidate) -> Shortfall:
    record = candidate.record
    return Shortfall("a free slot", f"{record.in_flight_jobs} of {record.declared.max_concurrent_jobs} taken")


def _exceeds_limit(record: NodeRecord, limits: Thresholds) -> bool:
    return _exceeded(record, limits) is not None


def _exceeds(candidate: Candidate) -> Shortfall:
    what, limit, figure = _exceeded(candidate.record, candidate.limits) or ("use", 0.0, 0.0)
    return Shortfall(f"{what} at most {limit:g} %", f"{figure:g} %")


def _exceeded(record: NodeRecord, limits: Thresholds) -> tuple[str, float, float] | None:
    """Name the first figure above its limit, with limit and figure; an unknown figure passes."""
    usage = record.liveness.usage
    if usage is None:
        return None
    if usage.cpu_percent > limits.max_cpu_percent:
        return "CPU use", limits.max_cpu_percent, usage.cpu_percent
    if usage.gpu_percent is not None and usage.gpu_percent > limits.max_gpu_percent:
        return "GPU use", limits.max_gpu_percent, usage.gpu_percent
    if usage.mem_percent > limits.max_memory_percent:
        return "memory use", limits.max_memory_percent, usage.mem_percent
    return None


# Filters by what a node declares.


def _keyed(
    reason: ExclusionReason,
    of_node: Callable[[NodeRecord], AbstractSet[_Key]],
    of_job: Callable[[Demand], Iterable[_Key]],
    *,
    shortfall: Callable[[Candidate, _Key], Shortfall],
    exclusions: Callable[[NodeQuestion], Iterator[NodeExclusion]],
) -> Filter:
    """Make the row of a filter that a node passes if it has all of the job's keys."""

    def first_missing(candidate: Candidate, demand: Demand) -> Shortfall | None:
        for key in of_job(demand):
            if key not in of_node(candidate.record):
                return shortfall(candidate, key)
        return None

    return Filter(reason, key=Keys(of_node, of_job), shortfall=first_missing, exclusions=exclusions)


def _not_allowed(candidate: Candidate, demand: Demand) -> Shortfall | None:
    if demand.allowed is None or candidate.record.node_id in demand.allowed:
        return None
    return Shortfall(f"one of {listed(demand.allowed)}", candidate.record.node_id)


def _jobs_not_allowed(asked: NodeQuestion) -> Iterator[NodeExclusion]:
    yield _exclusion(
        ExclusionReason.NOT_ALLOWED,
        Shortfall("allowed_nodes that name it, or none", asked.candidate.record.node_id),
        jobs="jobs whose allowed_nodes leave it out",
        clears_when="the job allows this node",
        is_limit=True,
    )


def _public_pool(record: NodeRecord) -> frozenset[str]:
    return _PUBLIC if record.declared.registration.accept_public_jobs else frozenset()


def _private(_candidate: Candidate, _key: str) -> Shortfall:
    return Shortfall("accept_public_jobs", "private or assigned jobs only")


def _public_jobs(asked: NodeQuestion) -> Iterator[NodeExclusion]:
    if not _public_pool(asked.candidate.record):
        yield _exclusion(
            ExclusionReason.NOT_IN_PUBLIC_POOL,
            _private(asked.candidate, ""),
            jobs="public jobs",
            clears_when="its agent sets accept_public_jobs",
        )


def _model_missing(candidate: Candidate, model: str) -> Shortfall:
    return Shortfall(f"model {model}", model_state(candidate.record, model))


def _jobs_with_models(asked: NodeQuestion) -> Iterator[NodeExclusion]:
    record, ready = asked.candidate.record, asked.candidate.record.declared.ready_models
    for model in _models_not_ready(record, asked.model):
        yield _exclusion(
            ExclusionReason.MODEL_NOT_AVAILABLE,
            _model_missing(asked.candidate, model),
            jobs=f"jobs that need model {clip_quote(model)}",
            clears_when=_when_model_ready(record, model),
        )
    yield _exclusion(
        ExclusionReason.MODEL_NOT_AVAILABLE,
        Shortfall("every model that it names ready", f"ready: {listed(ready)}"),
        jobs=f"jobs that need any model but {listed(ready)}" if ready else "jobs that need a model",
        clears_when="the model is installed, enabled and ready there",
        is_limit=True,
    )


def _models_not_ready(record: NodeRecord, asked: str | None) -> list[str]:
    """List models that are installed and not ready, the one that was asked for first."""
    ready = record.declared.ready_models
    installed = {one.model_id for one in record.declared.registration.installed_models} - ready
    first = [] if asked is None or asked in ready else [asked]
    return [*first, *sorted(installed.difference(first))][:MOST_MODELS]


def _when_model_ready(record: NodeRecord, model: str) -> str:
    match model_state(record, model):
        case "not installed":
            return "it is installed there"
        case "disabled":
            return "its agent enables it"
        case "downloading":
            return "its download ends"
        case state:
            return f"the node reports it ready, now {state}"


def _feature_missing(candidate: Candidate, feature: str) -> Shortfall:
    return Shortfall(f"feature {feature}", listed(candidate.record.declared.features))


def _jobs_with_features(asked: NodeQuestion) -> Iterator[NodeExclusion]:
    features = asked.candidate.record.declared.features
    yield _exclusion(
        ExclusionReason.FEATURE_NOT_SUPPORTED,
        Shortfall("every feature that it names", listed(features)),
        jobs=f"jobs that need any feature but {listed(features)}" if features else "jobs that need a feature",
        clears_when="its agent claims the feature under [features]",
        is_limit=True,
    )


def _label_missing(candidate: Candidate, label: tuple[str, str]) -> Shortfall:
    labels, (name, value) = candidate.record.declared.labels, label
    have = f"{name}={clip_quote(labels[name])}" if name in labels else f"no {name}"
    return Shortfall(f"label {name}={value}", have)


def _jobs_with_labels(asked: NodeQuestion) -> Iterator[NodeExclusion]:
    labels = asked.candidate.record.declared.labels
    shown = listed(f"{name}={value}" for name, value in labels.items())
    yield _exclusion(
        ExclusionReason.LABEL_MISMATCH,
        Shortfall("every label that it names", shown),
        jobs=f"jobs that ask for any label but {shown}" if labels else "jobs that ask for a label",
        clears_when="its agent sets the label under [labels]",
        is_limit=True,
    )


# Filters by a node's GPUs.


def _too_few_gpus(candidate: Candidate, demand: Demand) -> Shortfall | None:
    record, usable = candidate.record, len(usable_gpus(candidate.record, demand.gpu_name))
    if usable >= demand.gpu_count:
        return None
    return Shortfall(f"usable GPUs{_named(demand)}: {demand.gpu_count}", f"{usable} ({_gpus(record)})")


def _jobs_with_more_gpus(asked: NodeQuestion) -> Iterator[NodeExclusion]:
    record = asked.candidate.record
    usable = usable_gpus(record)
    all_usable = all(gpu.usable or gpu.is_parent for gpu in record.gpus.values())
    yield _exclusion(
        ExclusionReason.GPU_UNAVAILABLE,
        Shortfall(f"usable GPUs: {len(usable) + 1}", f"{len(usable)} ({_gpus(record)})"),
        jobs=_more_gpus(sorted(Counter(gpu.name for gpu in usable).items())),
        clears_when="other GPUs are put in" if all_usable else "the GPUs that are not usable recover",
        is_limit=all_usable,
    )


def _more_gpus(usable: list[tuple[str, int]]) -> str:
    total = sum(count for _, count in usable)
    if len(usable) > 1:
        each = ", ".join(f"{count} {clip_quote(name)}" for name, count in usable)
        return f"jobs that need more than {total} GPUs ({each}), or GPUs of another name"
    other = f", or GPUs that are no {clip_quote(usable[0][0])}" if usable else ""
    return f"jobs that need more than {total} GPU{'' if total == 1 else 's'}{other}"


def _gpus(record: NodeRecord) -> str:
    """List a node's GPUs with the health of each; equal ones are counted."""
    equal = Counter((gpu.name, "MIG parent" if gpu.is_parent else gpu.health) for gpu in record.gpus.values())
    parts = (
        f"{f'{count}x ' if count > 1 else ''}{clip_quote(name)} {clip_quote(state)}"
        for (name, state), count in equal.items()
    )
    return listed(parts, in_order=True) if equal else "no GPU"


def _too_little_memory(candidate: Candidate, demand: Demand) -> Shortfall | None:
    if has_memory(candidate, demand):
        return None
    each = "1 GPU" if demand.gpu_count == 1 else f"each of {demand.gpu_count} GPUs"
    have = f"free: {_memory(_free_memory(candidate, demand.gpu_name))}"
    return Shortfall(f"{demand.memory_mb} MiB free on {each}{_named(demand)}", have)


def _jobs_with_more_memory(asked: NodeQuestion) -> Iterator[NodeExclusion]:
    free = _free_memory(asked.candidate, "")
    freest = sorted((max(one, 0) for one in free if one is not None), reverse=True)
    most = freest[0] if freest else 0
    sizes = [gpu.memory_mb or 0 for gpu in usable_gpus(asked.candidate.record)]
    yield _exclusion(
        ExclusionReason.CAPACITY_EXCEEDED,
        Shortfall(f"more than {most} MiB free", f"free: {_memory(free)}"),
        jobs=_more_memory(freest),
        clears_when="jobs end and free it" if most < max(sizes, default=0) else "larger GPUs are put in",
        is_limit=True,
    )


def _more_memory(freest: list[int]) -> str:
    if not freest:
        return "jobs that state a need of GPU memory"
    more = [f"on each of {count}: {free}" for count, free in enumerate(freest[1:], start=2) if free]
    besides = f" ({listed(more, in_order=True)})" if more else ""
    return f"jobs that need more than {freest[0]} MiB of GPU memory{besides}"


def _free_memory(candidate: Candidate, gpu_name: str) -> list[int | None]:
    record = candidate.record
    return [free_mb(record, gpu, candidate.reserved) for gpu in usable_gpus(record, gpu_name)]


def _memory(free: Iterable[int | None]) -> str:
    """List free memory, GPU by GPU."""
    amounts = ("unknown" if one is None else f"{max(one, 0)} MiB" for one in free)
    return listed(amounts, in_order=True, empty="no GPU")


def _named(demand: Demand) -> str:
    return f" named {demand.job.gpu_name}" if demand.gpu_name else ""


def _exclusion(
    reason: ExclusionReason, shortfall: Shortfall, *, jobs: str, clears_when: str, is_limit: bool = False
) -> NodeExclusion:
    return NodeExclusion(
        reason=reason,
        jobs=clip_sentence(jobs),
        need=clip_sentence(shortfall.need),
        have=clip_sentence(shortfall.have),
        clears_when=clip_sentence(clears_when),
        is_limit=is_limit,
    )


FILTERS: tuple[Filter, ...] = (
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
    Filter(
        ExclusionReason.NOT_ALLOWED,
        key=NodeIds(lambda demand: demand.allowed),
        shortfall=_not_allowed,
        exclusions=_jobs_not_allowed,
    ),
    _keyed(
        ExclusionReason.NOT_IN_PUBLIC_POOL,
        _public_pool,
        lambda demand: _PUBLIC if demand.job.public else (),
        shortfall=_private,
        exclusions=_public_jobs,
    ),
    Filter(
        ExclusionReason.GPU_UNAVAILABLE,
        key=GpuKey.COUNT,
        shortfall=_too_few_gpus,
        exclusions=_jobs_with_more_gpus,
    ),
    _keyed(
        ExclusionReason.MODEL_NOT_AVAILABLE,
        lambda record: record.declared.ready_models,
        lambda demand: demand.job.required_models,
        shortfall=_model_missing,
        exclusions=_jobs_with_models,
    ),
    _keyed(
        ExclusionReason.FEATURE_NOT_SUPPORTED,
        lambda record: record.declared.features,
        lambda demand: demand.job.required_features,
        shortfall=_feature_missing,
        exclusions=_jobs_with_features,
    ),
    _keyed(
        ExclusionReason.LABEL_MISMATCH,
        lambda record: record.declared.labels.items(),
        lambda demand: demand.job.labels.items(),
        shortfall=_label_missing,
        exclusions=_jobs_with_labels,
    ),
    _node_state(
        ExclusionReason.CAPACITY_EXCEEDED,
        lambda record, _: record.in_flight_jobs >= record.declared.max_concurrent_jobs,
        shortfall=_no_free_slot,
        clears_when=lambda _: "one of its jobs ends and its slot is free again",
    ),
    Filter(
        ExclusionReason.CAPACITY_EXCEEDED,
        key=GpuKey.FREE_MEMORY,
        shortfall=_too_little_memory,
        exclusions=_jobs_with_more_memory,
    ),
    _node_state(
        ExclusionReason.RESOURCE_THRESHOLD_EXCEEDED,
        _exceeds_limit,
        shortfall=_exceeds,
        clears_when=lambda _: "a heartbeat reports less use than that",
    ),
)

_NODE_STATES = tuple((one.reason, one.key.excludes) for one in FILTERS if isinstance(one.key, NodeState))
