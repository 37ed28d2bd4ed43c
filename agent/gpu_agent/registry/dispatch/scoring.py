"""How good a place a node is, among those able: one whole number, so that equal means equal.

Four shares, each of its weight in the settings: free places, idle GPUs, free GPU memory, a short round
trip. All but the first count in tenths, so that a figure that only trembles moves no node. Excludes nobody.
"""

from gpu_agent.registry.load import known_percent, nearness
from gpu_agent.registry.record import NodeRecord
from gpu_agent.registry.thresholds import Thresholds

_TENTHS = 10


def best_score(weights: Thresholds) -> int:
    """Return the score of an idle node; only the affinity bonus lifts one over it."""
    measured = weights.weight_gpu_use + weights.weight_free_memory + weights.weight_round_trip
    return weights.weight_load + measured


def score(record: NodeRecord, in_flight: int, weights: Thresholds) -> int:
    """Rate a node from 0 to the best score; an unknown figure counts as half."""
    usage = record.usage
    places = record.max_concurrent_jobs
    free = places - in_flight
    return (
        (weights.weight_load * free // places if free > 0 else 0)
        + _idle(None if usage is None else usage.gpu_percent, weights.weight_gpu_use)
        + _idle(None if usage is None else usage.gpu_mem_percent, weights.weight_free_memory)
        + _near(record.round_trip_seconds, weights.weight_round_trip)
    )


def _idle(percent: float | None, weight: int) -> int:
    """Rate what is left of 100 %, in tenths; a tenth counts as used once it is begun to be left behind."""
    known = known_percent(percent)
    if known is None:
        return weight >> 1
    return weight * (_TENTHS - int(known) // 10) // _TENTHS


def _near(round_trip_seconds: float | None, weight: int) -> int:
    near = nearness(round_trip_seconds)
    return weight >> 1 if near is None else weight * near // _TENTHS
