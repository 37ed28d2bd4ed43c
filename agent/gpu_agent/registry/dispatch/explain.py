"""Explains dispatch: why each node can or cannot take one job, and which jobs one node cannot take.

It chooses no node. For a job that no node can take it counts the excluded nodes by reason. The index counts,
so a full fleet refuses a job as fast as it accepts one. Only a job that needs GPU memory costs a check of
single nodes: of those that are over a resource limit (A-3, A-8).

The explanation of a node lists exclusions and limits. An exclusion is a state that may pass: a status, a
failed GPU, a model that is not ready, no free slot. A limit is what the node is: its number of GPUs, its
models, its labels. Together they are complete: they name every job that a filter excludes from the node, and
no other.
"""

from collections.abc import Iterator
from dataclasses import replace

from gpu_agent.registry.dispatch.bitset import members
from gpu_agent.registry.dispatch.candidate import Candidate
from gpu_agent.registry.dispatch.declared_filters import model_state
from gpu_agent.registry.dispatch.exclusions import EXAMPLES_PER_REASON, Eligible, Excluded, NoAvailableNode
from gpu_agent.registry.dispatch.filter_row import GpuKey, NodeExclusion, NodeQuestion
from gpu_agent.registry.dispatch.filters import FILTERS, first_exclusion, unschedulable_reason
from gpu_agent.registry.dispatch.index import Index
from gpu_agent.registry.job import Demand, Sharing
from gpu_agent.registry.node import NodeRecord
from gpu_agent.registry.quoting import clip_quote
from gpu_agent.wire import api
from gpu_agent.wire.codes import ExclusionReason


def explain_node(candidate: Candidate, now: float, model: str | None = None) -> api.NodeExplanation:
    """Explain one node; `model` asks for the state of that model besides."""
    asked = NodeQuestion(candidate, now, model)
    found = [exclusion for one in FILTERS for exclusion in one.exclusions(asked)]
    return api.NodeExplanation(
        node_id=candidate.record.node_id,
        hostname=candidate.record.hostname,
        refuses_every_job=unschedulable_reason(candidate.record, candidate.limits) is not None,
        exclusions=tuple(_exclusion_view(one) for one in found if not one.is_limit),
        limits=tuple(_exclusion_view(one) for one in found if one.is_limit),
        model=None if model is None else _model(candidate.record, model),
    )


def explain_each(
    index: Index, demand: Demand, *, affinity_node: str | None, affinity_bonus: int
) -> Iterator[Eligible | Excluded]:
    """Explain a job node by node, each as it is at that moment; `affinity_node` gets the bonus."""
    for node_id in tuple(index.candidates):
        candidate = index.candidates.get(node_id)
        if candidate is None:
            continue
        bonus = affinity_bonus if node_id == affinity_node else 0
        excluded = first_exclusion(candidate, demand)
        if excluded is None:
            yield Eligible(node_id, candidate.score + bonus, candidate.record.hostname)
        else:
            yield _with_missing(excluded, candidate, demand)


def count_exclusions(index: Index, demand: Demand) -> NoAvailableNode:
    """Count what excludes each node, for a job that no node can take, with a few examples of each reason."""
    counts: dict[ExclusionReason, int] = {}
    examples: dict[ExclusionReason, list[Excluded]] = {}
    eligible = 0
    for reason, excluded, left in _excluded(index, demand):
        eligible = left.bit_count()
        if not excluded:
            continue
        counts[reason] = counts.get(reason, 0) + excluded.bit_count()
        shown = examples.setdefault(reason, [])
        for position in members(excluded):
            if len(shown) == EXAMPLES_PER_REASON:
                break
            example = first_exclusion(index.at(position), demand)
            if example is not None:
                shown.append(example)
    return NoAvailableNode(
        demand.job.job_id,
        counts,
        {reason: tuple(shown) for reason, shown in examples.items()},
        nodes_needed=demand.job.nodes,
        nodes_eligible=eligible,
    )


def _excluded(index: Index, demand: Demand) -> Iterator[tuple[ExclusionReason, int, int]]:
    """Ask the filters of all nodes, in order: the reason, the positions that it excludes, those left."""
    left = 0
    for positions in index.unschedulable.values():
        left |= positions
    for one, query in index.queries:
        passing = query(demand, left)
        if one.key is GpuKey.FREE and demand.sharing is Sharing.MEMORY:
            # A job for one node has no eligible one: what is open to jobs and passes lacks less than a step.
            among = passing & ~index.unschedulable[None] if demand.job.nodes == 1 else passing
            passing = index.with_free_gpus(demand, among)
        yield one.reason, left ^ passing, passing
        left = passing


def _with_missing(excluded: Excluded, candidate: Candidate, demand: Demand) -> Excluded:
    """Count the GPUs that a node lacks, where these are what excludes it."""
    if excluded.reason is ExclusionReason.GPU_UNAVAILABLE:
        return replace(excluded, missing_gpus=demand.gpus.missing(candidate.usable))
    if excluded.reason is ExclusionReason.CAPACITY_EXCEEDED:
        return replace(excluded, missing_gpus=demand.gpus.missing(candidate.free))
    return excluded


def _exclusion_view(one: NodeExclusion) -> api.NodeExclusionView:
    return api.NodeExclusionView(
        reason=one.reason.value,
        refuses=one.jobs,
        need=one.need,
        have=one.have,
        clears_when=one.clears_when,
    )


def _model(record: NodeRecord, model: str) -> api.ModelState:
    models = record.declared.models
    return api.ModelState(
        model_id=model,
        ready=model in record.declared.ready_models,
        state=model_state(record, model),
        versions=tuple(
            api.ModelVersion(version=one.version, enabled=one.enabled, status=clip_quote(one.status))
            for one in models.models()
            if one.model_id == model
        ),
        reported=(models.states() or {}).get(model),
    )
