"""Explain a job: each node's reason, or counts per reason for a job that no node can take (A-3, A-8).

Chooses no node. Counting uses the index, so that a full fleet refuses as fast as it accepts. Only nodes over a resource
limit are checked one by one, and only for a job that states a need of memory.
"""

from collections.abc import Iterator

from gpu_agent.registry.dispatch.bitset import members
from gpu_agent.registry.dispatch.filters import first_exclusion
from gpu_agent.registry.dispatch.index import Index
from gpu_agent.registry.dispatch.refusals import (
    EXAMPLES_PER_REASON,
    Eligible,
    Excluded,
    ExclusionReason,
    NoAvailableNode,
)
from gpu_agent.registry.job import Demand

_WHATEVER_THE_JOB = (ExclusionReason.STATUS_NOT_READY, ExclusionReason.DISCONNECTED, ExclusionReason.CORDONED)


def explain_each(
    index: Index, demand: Demand, *, warm: str | None, affinity_bonus: int
) -> Iterator[Eligible | Excluded]:
    """Judge the nodes that there are now, one by one, each as it is when its turn comes.

    `warm` is the node that earns the bonus.
    """
    for node_id in tuple(index.views):
        view = index.views.get(node_id)
        if view is None:
            continue
        verdict = first_exclusion(view, demand)
        yield verdict or Eligible(node_id, view.score + (affinity_bonus if node_id == warm else 0))


def count_refusal(index: Index, demand: Demand) -> NoAvailableNode:
    """Count what every node failed on, for a job that no node can take, with a few examples each."""
    counts: dict[ExclusionReason, int] = {}
    examples: dict[ExclusionReason, list[Excluded]] = {}
    for reason, fallen in _fallen(index, demand):
        if not fallen:
            continue
        counts[reason] = counts.get(reason, 0) + fallen.bit_count()
        shown = examples.setdefault(reason, [])
        for slot in members(fallen):
            if len(shown) == EXAMPLES_PER_REASON:
                break
            verdict = first_exclusion(index.at(slot), demand)
            if verdict is not None:
                shown.append(verdict)
    return NoAvailableNode(
        demand.job.job_id, counts, {reason: tuple(shown) for reason, shown in examples.items()}
    )


def _fallen(index: Index, demand: Demand) -> Iterator[tuple[ExclusionReason, int]]:
    """Run all nodes through the filters in order: the reason, and the slots that fall to it."""
    for reason in _WHATEVER_THE_JOB:
        yield reason, index.standing[reason]
    full = index.standing[ExclusionReason.CAPACITY_EXCEEDED]
    over_limits = index.standing[ExclusionReason.RESOURCE_THRESHOLD_EXCEEDED]
    left = index.standing[None] | full | over_limits
    for reason, passing in index.demanded(demand):
        yield reason, left & ~passing
        left &= passing
    yield ExclusionReason.CAPACITY_EXCEEDED, left & full
    left &= ~full
    roomy = index.roomy(demand, left)
    # No node is able, so those that are open and seem roomy lack memory by less than a step.
    enough = index.with_memory(demand, roomy & over_limits) if demand.memory_mb else roomy
    yield ExclusionReason.CAPACITY_EXCEEDED, left ^ enough
    yield ExclusionReason.RESOURCE_THRESHOLD_EXCEEDED, enough
