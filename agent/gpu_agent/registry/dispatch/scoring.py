"""How good a place a node is, among those able: one whole number, so that equal means equal.

In permille: free places 500, idle GPUs 280, free GPU memory 220. GPU use and memory count in tenths, so
that a figure that only trembles moves no node. The round trip of §5 is not rated: the registry sends no
pings, so nobody knows it. Excludes nobody.
"""

from gpu_agent.registry.load import known_percent
from gpu_agent.registry.record import NodeRecord

FREE_PLACES_WEIGHT = 500
IDLE_GPU_WEIGHT = 280
FREE_MEMORY_WEIGHT = 220
BEST_SCORE = FREE_PLACES_WEIGHT + IDLE_GPU_WEIGHT + FREE_MEMORY_WEIGHT

AFFINITY_BONUS = 200
"""For the node that last held a job's affinity key; it may lift a score over `BEST_SCORE`."""

_TENTHS = 10


def score(record: NodeRecord, in_flight: int) -> int:
    """Rate a node from 0 to `BEST_SCORE`; an unknown figure counts as half."""
    usage = record.usage
    places = record.max_concurrent_jobs
    free = places - in_flight
    return (
        (FREE_PLACES_WEIGHT * free // places if free > 0 else 0)
        + _idle(None if usage is None else usage.gpu_percent, IDLE_GPU_WEIGHT)
        + _idle(None if usage is None else usage.gpu_mem_percent, FREE_MEMORY_WEIGHT)
    )


def _idle(percent: float | None, weight: int) -> int:
    """Rate what is left of 100 %, in tenths; a tenth counts as used once it is begun to be left behind."""
    known = known_percent(percent)
    if known is None:
        return weight >> 1
    return weight * (_TENTHS - int(known) // 10) // _TENTHS
