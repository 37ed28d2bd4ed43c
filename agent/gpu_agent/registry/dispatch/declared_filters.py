"""Filters by what a node declares: its id, its pool, its models, its features and its labels."""

from collections.abc import Callable, Hashable, Iterable, Iterator
from collections.abc import Set as AbstractSet
from operator import attrgetter
from typing import TypeVar

from gpu_agent.registry.dispatch.candidate import Candidate
from gpu_agent.registry.dispatch.filter_row import (
    Filter,
    Keys,
    NodeExclusion,
    NodeIds,
    NodeQuestion,
    Shortfall,
)
from gpu_agent.registry.job import Demand
from gpu_agent.registry.node import NodeRecord
from gpu_agent.registry.quoting import clip_quote, listed
from gpu_agent.wire.codes import ExclusionReason

MOST_MODELS = 32
"""So many models that are not ready are named one by one; the limit on models covers the rest."""

_PUBLIC = frozenset({"public"})

_WHEN_MODEL_READY = {
    "not_installed": "it is installed there",
    "disabled": "its agent enables it",
    "downloading": "its download ends",
}

_Key = TypeVar("_Key", bound=Hashable)


def model_state(record: NodeRecord, model: str) -> str:
    """Return the state of a model on a node: `ready`, `disabled`, `not_installed`, or what it reports."""
    if model in record.declared.ready_models:
        return "ready"
    models = record.declared.models
    installed = [one for one in models.models() if one.model_id == model]
    if not installed:
        return "not_installed"
    if not any(one.enabled for one in installed):
        return "disabled"
    stated = (models.states() or {}).get(model)
    return clip_quote(stated or next(one.status for one in installed if one.enabled))


def _keyed(
    reason: ExclusionReason,
    of_node: Callable[[NodeRecord], AbstractSet[_Key]],
    of_job: Callable[[Demand], Iterable[tuple[_Key, ...]]],
    *,
    shortfall: Callable[[Candidate, tuple[_Key, ...]], Shortfall],
    exclusions: Callable[[NodeQuestion], Iterator[NodeExclusion]],
    permanent: bool = False,
) -> Filter:
    """Make the row of a filter that a node passes if it has one key of each group of the job's."""

    def first_missing(candidate: Candidate, demand: Demand) -> Shortfall | None:
        keys = of_node(candidate.record)
        for group in of_job(demand):
            if not any(key in keys for key in group):
                return shortfall(candidate, group)
        return None

    return Filter(
        reason,
        key=Keys(of_node, of_job),
        shortfall=first_missing,
        exclusions=exclusions,
        permanent=permanent,
    )


def _not_allowed(candidate: Candidate, demand: Demand) -> Shortfall | None:
    node_id = candidate.record.node_id
    if demand.allowed is not None and node_id not in demand.allowed:
        return Shortfall(f"one of {listed(demand.allowed)}", node_id)
    if node_id in demand.excluded:
        return Shortfall(f"none of {listed(demand.excluded)}", node_id)
    return None


def _jobs_not_allowed(asked: NodeQuestion) -> Iterator[NodeExclusion]:
    yield NodeExclusion.of(
        ExclusionReason.NOT_ALLOWED,
        Shortfall("allowed_nodes that name it, or none", asked.candidate.record.node_id),
        jobs="jobs whose allowed_nodes leave it out, or whose excluded_nodes name it",
        clears_when="the job allows this node",
        is_limit=True,
    )


def _public_pool(record: NodeRecord) -> frozenset[str]:
    return _PUBLIC if record.declared.registration.accept_public_jobs else frozenset()


def _private(_candidate: Candidate, _key: tuple[str, ...]) -> Shortfall:
    return Shortfall("a node of the public pool", "private and assigned jobs only")


def _public_jobs(asked: NodeQuestion) -> Iterator[NodeExclusion]:
    if not _public_pool(asked.candidate.record):
        yield NodeExclusion.of(
            ExclusionReason.NOT_IN_PUBLIC_POOL,
            _private(asked.candidate, ()),
            jobs="public jobs",
            clears_when="its agent sets accept_public_jobs",
        )


def _model_missing(candidate: Candidate, models: tuple[str, ...]) -> Shortfall:
    (model,) = models
    state = model_state(candidate.record, model).replace("_", " ")
    return Shortfall(f"model {model}", f"no ready version of it: {state}")


def _jobs_with_models(asked: NodeQuestion) -> Iterator[NodeExclusion]:
    record, ready = asked.candidate.record, asked.candidate.record.declared.ready_models
    for model in _models_not_ready(record, asked.model):
        yield NodeExclusion.of(
            ExclusionReason.MODEL_NOT_AVAILABLE,
            _model_missing(asked.candidate, (model,)),
            jobs=f"jobs that need model {clip_quote(model)}",
            clears_when=_when_model_ready(record, model),
        )
    yield NodeExclusion.of(
        ExclusionReason.MODEL_NOT_AVAILABLE,
        Shortfall("every model that it names ready", f"ready: {listed(ready)}"),
        jobs=f"jobs that need a model other than {listed(ready)}" if ready else "jobs that need a model",
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
    yield NodeExclusion.of(
        ExclusionReason.FEATURE_NOT_SUPPORTED,
        Shortfall("every feature that it names", listed(features)),
        jobs=f"jobs that need a feature other than {listed(features)}"
        if features
        else "jobs that need a feature",
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
    yield NodeExclusion.of(
        ExclusionReason.LABEL_MISMATCH,
        Shortfall("every label that it names", shown),
        jobs=f"jobs that ask for a label other than {shown}" if labels else "jobs that ask for a label",
        clears_when="its agent sets the label under [labels]",
        is_limit=True,
    )


DECLARED_FILTERS: tuple[Filter, ...] = (
    Filter(
        ExclusionReason.NOT_ALLOWED,
        key=NodeIds(attrgetter("allowed"), attrgetter("excluded")),
        shortfall=_not_allowed,
        exclusions=_jobs_not_allowed,
        permanent=True,
    ),
    _keyed(
        ExclusionReason.NOT_IN_PUBLIC_POOL,
        _public_pool,
        lambda demand: (("public",),) if demand.job.public else (),
        shortfall=_private,
        exclusions=_public_jobs,
        permanent=True,
    ),
    _keyed(
        ExclusionReason.MODEL_NOT_AVAILABLE,
        lambda record: record.declared.ready_models,
        lambda demand: zip(demand.job.required_models),
        shortfall=_model_missing,
        exclusions=_jobs_with_models,
    ),
    _keyed(
        ExclusionReason.FEATURE_NOT_SUPPORTED,
        lambda record: record.declared.features,
        lambda demand: zip(demand.job.required_features),
        shortfall=_feature_missing,
        exclusions=_jobs_with_features,
        permanent=True,
    ),
    _keyed(
        ExclusionReason.LABEL_MISMATCH,
        lambda record: record.declared.labels.items(),
        lambda demand: demand.labels,
        shortfall=_label_missing,
        exclusions=_jobs_with_labels,
        permanent=True,
    ),
)
