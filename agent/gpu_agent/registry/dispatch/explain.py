"""What dispatch answers when asked why: each node's reason, or what a job failed on, counted (A-3, A-8).

Chooses nobody. Counting uses the index, so that a fleet that is full refuses as fast as it accepts; only
nodes over a resource limit are looked at one by one, and only for a job that states a need of memory.
"""

from collections.abc import Iterator
from operator import itemgetter

from gpu_agent.registry.dispatch.bits import members
from gpu_agent.registry.dispatch.demand import Demand
from gpu_agent.registry.dispatch.filters import exclusion
from gpu_agent.registry.dispatch.index import Index
from gpu_agent.registry.dispatch.scoring import AFFINITY_BONUS
from gpu_agent.registry.dispatch.verdict import (
    EXAMPLES_PER_REASON,
    Excluded,
    Exclusion,
    Explanation,
    NoAvailableNode,
)

_WHATEVER_THE_JOB = (Exclusion.STATUS_NOT_READY, Exclusion.DISCONNECTED, Exclusion.CORDONED)


def explanation(index: Index, demand: Demand, warm: str | None) -> Explanation:
    """Judge every node: the able ones, best score first, and each other one's first reason. O(nodes).

    `warm` is the node that earns the affinity bonus.
    """
    able, excluded = [], []
    for node_id, view in index.views.items():
        verdict = exclusion(view, demand)
        if verdict is not None:
            excluded.append(verdict)
        else:
            able.append((view.score + (AFFINITY_BONUS if node_id == warm else 0), node_id))
    able.sort(key=itemgetter(0), reverse=True)
    return Explanation(demand.job.job_id, tuple(node_id for _, node_id in able), tuple(excluded))


def refusal(index: Index, demand: Demand) -> NoAvailableNode:
    """Count what every node failed on, for a job that no node can take, with a few examples each."""
    counts: dict[Exclusion, int] = {}
    examples: dict[Exclusion, list[Excluded]] = {}
    for reason, fallen in _fallen(index, demand):
        if not fallen:
            continue
        counts[reason] = counts.get(reason, 0) + fallen.bit_count()
        shown = examples.setdefault(reason, [])
        for slot in members(fallen):
            if len(shown) == EXAMPLES_PER_REASON:
                break
            verdict = exclusion(index.at(slot), demand)
            if verdict is not None:
                shown.append(verdict)
    return NoAvailableNode(
        demand.job.job_id, counts, {reason: tuple(shown) for reason, shown in examples.items()}
    )


def _fallen(index: Index, demand: Demand) -> Iterator[tuple[Exclusion, int]]:
    """Run all nodes through the filters in order: the reason, and the slots that fall to it."""
    for reason in _WHATEVER_THE_JOB:
        yield reason, index.standing[reason]
    full = index.standing[Exclusion.CAPACITY_EXCEEDED]
    over_limits = index.standing[Exclusion.RESOURCE_THRESHOLD_EXCEEDED]
    left = index.standing[None] | full | over_limits
    for reason, passing in index.demanded(demand):
        yield reason, left & ~passing
        left &= passing
    yield Exclusion.CAPACITY_EXCEEDED, left & full
    left &= ~full
    roomy = index.roomy(demand, left)
    # No node is able, so those that are open and seem roomy lack memory by less than a step.
    enough = index.with_memory(demand, roomy & over_limits) if demand.memory_mb else roomy
    yield Exclusion.CAPACITY_EXCEEDED, left ^ enough
    yield Exclusion.RESOURCE_THRESHOLD_EXCEEDED, enough
