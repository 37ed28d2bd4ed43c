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
from gpu_agent.registry.dispatch.candidate import Candidate, QueueReservation
from gpu_agent.registry.dispatch.exclusions import Excluded
from gpu_agent.registry.dispatch.gpu_allocation import (
    availability,
    free_memory,
    gpu_set,
    has_free_gpus,
    usable_gpus,
    why_not_free,
)
from gpu_agent.registry.dispatch.reservation import is_kept_from, obtainable
from gpu_agent.registry.job import Demand, GpuDemand, Sharing, meets
from gpu_agent.registry.node import NodeRecord
from gpu_agent.registry.quoting import clip_quote, clip_sentence, listed
from gpu_agent.registry.settings import Thresholds
from gpu_agent.wire.codes import ExclusionReason, NodeStatus

MOST_MODELS = 32
"""So many models that are not ready are named one by one; the limit on models covers the rest."""

EVERY_JOB = "every job"

_PUBLIC = frozenset({"public"})
_ANY_GPU = GpuDemand(Sharing.MEMORY, 1, "", 0, (0, 0))

_WHEN_MODEL_READY = {
    "not installed": "it is installed there",
    "disabled": "its agent enables it",
    "downloading": "its download ends",
}

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
    """The job names the nodes that pass (None for all), and those that do not."""

    allowed: Callable[[Demand], frozenset[str] | None]
    excluded: Callable[[Demand], frozenset[str]]


@dataclass(frozen=True, slots=True)
class Keys:
    """The index holds the nodes that have a key; a node passes that has one key of each group of the job's.

    The keys follow from what the node declares.
    """

    of_node: Callable[[NodeRecord], AbstractSet[Hashable]]
    of_job: Callable[[Demand], Iterable[tuple[Hashable, ...]]]


class GpuKey(Enum):
    """What the index holds of a node's GPUs."""

    USABLE = auto()
    """How many are usable of each kind."""
    FREE = auto()
    """How many of these nothing else holds, and how much memory is free on them.

    Memory is held in steps: a node that passes the index may still fail the filter.
    """
    RESERVED = auto()
    """The few nodes on which a waiting job keeps others from what it needs."""
    BUSY = auto()
    """Whether GPU use is above its limit."""


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
            record = candidate.record
            return Excluded(record.node_id, one.reason, need, have, record.hostname)
    return None


def unschedulable_reason(record: NodeRecord, limits: Thresholds) -> ExclusionReason | None:
    """Return the first reason that excludes a node whatever the job; None when it is open to jobs."""
    for reason, excludes in _NODE_STATES:
        if excludes(record, limits):
            return reason
    return None


def model_state(record: NodeRecord, model: str) -> str:
    """Return the state of a model on a node: `ready`, `disabled`, `not installed`, or what it reports."""
    if model in record.declared.ready_models:
        return "ready"
    models = record.declared.models
    installed = [one for one in models.models() if one.model_id == model]
    if not installed:
        return "not installed"
    if not any(one.enabled for one in installed):
        return "disabled"
    stated = (models.states() or {}).get(model)
    return clip_quote(stated or next(one.status for one in installed if one.enabled))


def lacks_only_capacity(candidate: Candidate, demand: Demand) -> bool:
    """Whether a node passes every filter but those of its capacity, and may have the GPUs at some time."""
    may_have = gpu_set(obtainable(candidate, usable_gpus(candidate.record)))
    return meets(may_have, demand.gpus) and all(
        one.reason is ExclusionReason.CAPACITY_EXCEEDED or one.shortfall(candidate, demand) is None
        for one in FILTERS
    )


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
    return Shortfall("a free slot", f"{record.in_flight_jobs} of {record.slots} taken")


def _exceeds(candidate: Candidate) -> Shortfall:
    return _use(*(_exceeded(candidate.record, candidate.limits) or ("use", 0.0, 0.0)))


def _exceeded(record: NodeRecord, limits: Thresholds) -> tuple[str, float, float] | None:
    """Name the first figure of the host above its limit, with limit and figure.

    An unknown figure passes, and so does a simulated node: its host's figures are another machine's.
    """
    usage = record.liveness.usage
    if usage is None or record.declared.registration.simulated:
        return None
    if usage.cpu_percent > limits.max_cpu_percent:
        return "CPU use", limits.max_cpu_percent, usage.cpu_percent
    if usage.mem_percent > limits.max_memory_percent:
        return "memory use", limits.max_memory_percent, usage.mem_percent
    return None


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
        yield _exclusion(
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
    return Shortfall(f"{what} at most {limit:g} %", f"{figure:g} %")


# Filters by what a node declares.


def _keyed(
    reason: ExclusionReason,
    of_node: Callable[[NodeRecord], AbstractSet[_Key]],
    of_job: Callable[[Demand], Iterable[tuple[_Key, ...]]],
    *,
    shortfall: Callable[[Candidate, tuple[_Key, ...]], Shortfall],
    exclusions: Callable[[NodeQuestion], Iterator[NodeExclusion]],
) -> Filter:
    """Make the row of a filter that a node passes if it has one key of each group of the job's."""

    def first_missing(candidate: Candidate, demand: Demand) -> Shortfall | None:
        keys = of_node(candidate.record)
        for group in of_job(demand):
            if not any(key in keys for key in group):
                return shortfall(candidate, group)
        return None

    return Filter(reason, key=Keys(of_node, of_job), shortfall=first_missing, exclusions=exclusions)


def _not_allowed(candidate: Candidate, demand: Demand) -> Shortfall | None:
    node_id = candidate.record.node_id
    if demand.allowed is not None and node_id not in demand.allowed:
        return Shortfall(f"one of {listed(demand.allowed)}", node_id)
    if node_id in demand.excluded:
        return Shortfall(f"none of {listed(demand.excluded)}", node_id)
    return None


def _jobs_not_allowed(asked: NodeQuestion) -> Iterator[NodeExclusion]:
    yield _exclusion(
        ExclusionReason.NOT_ALLOWED,
        Shortfall("allowed_nodes that name it, or none", asked.candidate.record.node_id),
        jobs="jobs whose allowed_nodes leave it out, or whose excluded_nodes name it",
        clears_when="the job allows this node",
        is_limit=True,
    )


def _public_pool(record: NodeRecord) -> frozenset[str]:
    return _PUBLIC if record.declared.registration.accept_public_jobs else frozenset()


def _private(_candidate: Candidate, _key: tuple[str, ...]) -> Shortfall:
    return Shortfall("accept_public_jobs", "private or assigned jobs only")


def _public_jobs(asked: NodeQuestion) -> Iterator[NodeExclusion]:
    if not _public_pool(asked.candidate.record):
        yield _exclusion(
            ExclusionReason.NOT_IN_PUBLIC_POOL,
            _private(asked.candidate, ()),
            jobs="public jobs",
            clears_when="its agent sets accept_public_jobs",
        )


def _model_missing(candidate: Candidate, models: tuple[str, ...]) -> Shortfall:
    (model,) = models
    return Shortfall(f"model {model}", model_state(candidate.record, model))


def _jobs_with_models(asked: NodeQuestion) -> Iterator[NodeExclusion]:
    record, ready = asked.candidate.record, asked.candidate.record.declared.ready_models
    for model in _models_not_ready(record, asked.model):
        yield _exclusion(
            ExclusionReason.MODEL_NOT_AVAILABLE,
            _model_missing(asked.candidate, (model,)),
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
    installed = {one.model_id for one in record.declared.models.models()} - ready
    first = [] if asked is None or asked in ready else [asked]
    return [*first, *sorted(installed.difference(first))][:MOST_MODELS]


def _when_model_ready(record: NodeRecord, model: str) -> str:
    state = model_state(record, model)
    return _WHEN_MODEL_READY.get(state, f"the node reports it ready, now {state}")


def _feature_missing(candidate: Candidate, features: tuple[str, ...]) -> Shortfall:
    (feature,) = features
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


def _label_missing(candidate: Candidate, pairs: tuple[tuple[str, str], ...]) -> Shortfall:
    labels, (name, value) = candidate.record.declared.labels, pairs[0]
    have = f"{name}={clip_quote(labels[name])}" if name in labels else f"no {name}"
    if len(pairs) == 1:
        return Shortfall(f"label {name}={value}", have)
    return Shortfall(f"label {name} one of {listed(one for _, one in pairs)}", have)


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
    if meets(candidate.usable, demand.gpus):
        return None
    fitting = sum(number for kind, number in candidate.usable if demand.gpus.fits(kind))
    return Shortfall(
        f"usable GPUs{_of_demand(demand)}: {demand.gpus.number}", f"{fitting} ({_gpus(candidate.record)})"
    )


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


def _more_gpus(usable: list[tuple[str, int]], what: str = "GPUs") -> str:
    total = sum(count for _, count in usable)
    if len(usable) > 1:
        each = ", ".join(f"{count} {clip_quote(name)}" for name, count in usable)
        return f"jobs that need more than {total} {what} ({each}), or GPUs of another name"
    other = f", or GPUs that are no {clip_quote(usable[0][0])}" if usable else ""
    return f"jobs that need more than {total} {what.removesuffix('s') if total == 1 else what}{other}"


def _gpus(record: NodeRecord) -> str:
    """List a node's GPUs with the health of each; equal ones are counted."""
    equal = Counter((gpu.name, "MIG parent" if gpu.is_parent else gpu.health) for gpu in record.gpus.values())
    parts = (
        f"{f'{count}x ' if count > 1 else ''}{clip_quote(name)} {clip_quote(state)}"
        for (name, state), count in equal.items()
    )
    return listed(parts, in_order=True) if equal else "no GPU"


def _too_few_free_gpus(candidate: Candidate, demand: Demand) -> Shortfall | None:
    if has_free_gpus(candidate, demand.gpus):
        return None
    count = demand.gpus.number
    if demand.sharing is Sharing.MEMORY:
        each = "1 GPU" if count == 1 else f"each of {count} GPUs"
        have = f"free: {_memory(free_memory(candidate, demand.gpus))}"
        return Shortfall(f"{demand.gpus.memory_mb} MiB free on {each}{_of_demand(demand)}", have)
    which = "a GPU that no exclusive claim holds" if demand.sharing is None else f"free GPUs: {count}"
    return Shortfall(f"{which}{_of_demand(demand)}", _holders(candidate, demand))


def _holders(candidate: Candidate, demand: Demand) -> str:
    """Say of each GPU that fits a job why it is not free."""
    fitting = [gpu for gpu in usable_gpus(candidate.record) if demand.gpus.fits(gpu.kind)]
    free = [gpu for gpu in availability(candidate).free if demand.gpus.fits(gpu.kind)]
    why = Counter(why_not_free(candidate, gpu) or "free" for gpu in fitting if gpu not in free)
    held = listed((f"{count}x {one}" if count > 1 else one for one, count in why.items()), in_order=True)
    return f"{len(free)} free of {len(fitting)}; {held}" if why else f"{len(free)} free of {len(fitting)}"


def _jobs_with_more_free_gpus(asked: NodeQuestion) -> Iterator[NodeExclusion]:
    candidate = asked.candidate
    usable, unheld, free = availability(candidate)
    if usable and len(free) < len(usable):
        held = [f"{gpu.uuid} {why}" for gpu in usable if (why := why_not_free(candidate, gpu)) is not None]
        yield _exclusion(
            ExclusionReason.CAPACITY_EXCEEDED,
            Shortfall(f"free GPUs: {len(free) + 1}", f"{len(free)} free; {listed(held, in_order=True)}"),
            jobs=_more_gpus(sorted(Counter(gpu.name for gpu in free).items()), "whole GPUs"),
            clears_when="the claims on its GPUs end, and their jobs with them",
        )
    if usable and not unheld:
        yield _exclusion(
            ExclusionReason.CAPACITY_EXCEEDED,
            Shortfall("a GPU that no exclusive claim holds", "none"),
            jobs="jobs without GPUs of their own",
            clears_when="an exclusive claim on one of its GPUs ends",
        )
    memory = free_memory(candidate, _ANY_GPU)
    freest = sorted((max(one, 0) for one in memory if one is not None), reverse=True)
    most = freest[0] if freest else 0
    sizes = [gpu.memory_mb or 0 for gpu in usable]
    yield _exclusion(
        ExclusionReason.CAPACITY_EXCEEDED,
        Shortfall(f"more than {most} MiB free", f"free: {_memory(memory)}"),
        jobs=_more_memory(freest),
        clears_when="jobs end and free it" if most < max(sizes, default=0) else "larger GPUs are put in",
        is_limit=True,
    )


def _more_memory(freest: list[int]) -> str:
    if not freest:
        return "jobs that share GPU memory"
    more = [f"on each of {count}: {free}" for count, free in enumerate(freest[1:], start=2) if free]
    besides = f" ({listed(more, in_order=True)})" if more else ""
    return f"jobs that share more than {freest[0]} MiB of GPU memory{besides}"


def _reserved_for_waiting_job(candidate: Candidate, demand: Demand) -> Shortfall | None:
    """Keep what the first waiting job needs, from jobs of the same or a lower priority (§5.4)."""
    return _reserved(candidate.reservation) if is_kept_from(candidate, demand) else None


def _reserved(reservation: QueueReservation | None) -> Shortfall | None:
    if reservation is None:
        return None
    job = f"job {clip_quote(reservation.job_id)}, which waits for {reservation.demand.number} GPUs"
    return Shortfall("capacity that no waiting job needs", f"reserved for {job}")


def _jobs_after_waiting_job(asked: NodeQuestion) -> Iterator[NodeExclusion]:
    reservation = asked.candidate.reservation
    shortfall = _reserved(reservation)
    if reservation is not None and shortfall is not None:
        jobs = f"jobs of priority {reservation.priority} or lower that would take what it waits for"
        clears_when = "that job gets its claim, or waits no more"
        yield _exclusion(ExclusionReason.CAPACITY_EXCEEDED, shortfall, jobs=jobs, clears_when=clears_when)


def _memory(free: Iterable[int | None]) -> str:
    """List free memory, GPU by GPU."""
    amounts = ("unknown" if one is None else f"{max(one, 0)} MiB" for one in free)
    return listed(amounts, in_order=True, empty="no GPU")


def _of_demand(demand: Demand) -> str:
    """Say which GPUs a job needs."""
    job, words = demand.job, []
    if job.gpu_name:
        words.append(f"named {clip_quote(job.gpu_name)}")
    if job.min_gpu_memory_mb and demand.sharing is Sharing.EXCLUSIVE:
        words.append(f"with {job.min_gpu_memory_mb} MiB")
    if job.min_compute_capability:
        words.append(f"of compute capability {clip_quote(job.min_compute_capability)}")
    return f" {' '.join(words)}" if words else ""


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
        key=NodeIds(lambda demand: demand.allowed, lambda demand: demand.excluded),
        shortfall=_not_allowed,
        exclusions=_jobs_not_allowed,
    ),
    _keyed(
        ExclusionReason.NOT_IN_PUBLIC_POOL,
        _public_pool,
        lambda demand: (("public",),) if demand.job.public else (),
        shortfall=_private,
        exclusions=_public_jobs,
    ),
    Filter(
        ExclusionReason.GPU_UNAVAILABLE,
        key=GpuKey.USABLE,
        shortfall=_too_few_gpus,
        exclusions=_jobs_with_more_gpus,
    ),
    _keyed(
        ExclusionReason.MODEL_NOT_AVAILABLE,
        lambda record: record.declared.ready_models,
        lambda demand: ((model,) for model in demand.job.required_models),
        shortfall=_model_missing,
        exclusions=_jobs_with_models,
    ),
    _keyed(
        ExclusionReason.FEATURE_NOT_SUPPORTED,
        lambda record: record.declared.features,
        lambda demand: ((feature,) for feature in demand.job.required_features),
        shortfall=_feature_missing,
        exclusions=_jobs_with_features,
    ),
    _keyed(
        ExclusionReason.LABEL_MISMATCH,
        lambda record: record.declared.labels.items(),
        lambda demand: demand.labels,
        shortfall=_label_missing,
        exclusions=_jobs_with_labels,
    ),
    _node_state(
        ExclusionReason.CAPACITY_EXCEEDED,
        lambda record, _: record.in_flight_jobs >= record.slots,
        shortfall=_no_free_slot,
        clears_when=lambda _: "one of its jobs ends and its slot is free again",
    ),
    Filter(
        ExclusionReason.CAPACITY_EXCEEDED,
        key=GpuKey.FREE,
        shortfall=_too_few_free_gpus,
        exclusions=_jobs_with_more_free_gpus,
    ),
    Filter(
        ExclusionReason.CAPACITY_EXCEEDED,
        key=GpuKey.RESERVED,
        shortfall=_reserved_for_waiting_job,
        exclusions=_jobs_after_waiting_job,
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

_NODE_STATES = tuple((one.reason, one.key.excludes) for one in FILTERS if isinstance(one.key, NodeState))

PERMANENT = frozenset(
    {
        ExclusionReason.NOT_ALLOWED,
        ExclusionReason.NOT_IN_PUBLIC_POOL,
        ExclusionReason.FEATURE_NOT_SUPPORTED,
        ExclusionReason.LABEL_MISMATCH,
    }
)
"""What excludes a node for as long as it declares what it declares: waiting does not help (§5.4)."""
