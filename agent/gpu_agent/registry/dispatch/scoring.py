"""How good a place a node is, among those able: one whole number, so that equal means equal.

In permille: free places 450, idle GPUs 250, free GPU memory 200, short round trip 100. GPU use and memory
count in tenths, so that a figure that only trembles moves no node. Excludes nobody.
"""

from gpu_agent.registry.load import known_percent
from gpu_agent.registry.record import NodeRecord

FREE_PLACES_WEIGHT = 450
IDLE_GPU_WEIGHT = 250
FREE_MEMORY_WEIGHT = 200
ROUND_TRIP_WEIGHT = 100
BEST_SCORE = FREE_PLACES_WEIGHT + IDLE_GPU_WEIGHT + FREE_MEMORY_WEIGHT + ROUND_TRIP_WEIGHT

AFFINITY_BONUS = 200
"""For the node that last held a job's affinity key; it may lift a score over `BEST_SCORE`."""

WORST_ROUND_TRIP_SECONDS = 0.5
"""From here on a round trip scores nothing."""

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
        + _near(record.round_trip_seconds)
    )


def _idle(percent: float | None, weight: int) -> int:
    """Rate what is left of 100 %, in tenths; a tenth counts as used once it is begun to be left behind."""
    known = known_percent(percent)
    if known is None:
        return weight >> 1
    return weight * (_TENTHS - int(known) // 10) // _TENTHS


def _near(seconds: float | None) -> int:
    if seconds is None:
        return ROUND_TRIP_WEIGHT >> 1
    if seconds >= WORST_ROUND_TRIP_SECONDS:
        return 0
    return ROUND_TRIP_WEIGHT - int(seconds * (ROUND_TRIP_WEIGHT / WORST_ROUND_TRIP_SECONDS))
