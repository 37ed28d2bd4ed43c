"""How good a node is for a job, among those eligible: one whole number, so that equal means equal.

Four shares, each with its weight from the settings: free slots, idle GPUs, free GPU memory, a short round trip. All but
the first count in tenths, so that small changes of a figure move no node. Heartbeats whose figures fall into the same
tenths have the same load and need no new entry in the index.
"""

from gpu_agent.registry.node import NodeRecord
from gpu_agent.registry.settings import Thresholds
from gpu_agent.wire.messages import ResourceUsage

# How good a place a node is, among those able: one whole number, so that equal means equal.
#
# Four shares, each of its weight in the settings: free places, idle GPUs, free GPU memory, a short round
# trip. All but the first count in tenths, so that a figure that only trembles moves no node. Excludes
# nobody.


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


# What dispatch can tell apart in a beat's figures: beats of the same load need not be filed anew.
#
# As coarse as the scores and limits of dispatch; a test holds the two together. Rates nothing.


Load = tuple[bool, bool, bool, float | None, float | None]
"""CPU, memory and GPU over their limits; tenths of GPU use; tenths of GPU memory use."""

_TENTH = 10
_ALL = 100
_FAR_SECONDS = 0.1
"""A node whose network takes so long is far, and however much longer, no farther."""


def known_percent(figure: float | None) -> float | None:
    """Return a share that can be reckoned with; what is outside 0 to 100 says nothing, and is unknown."""
    return figure if figure is not None and 0 <= figure <= _ALL else None


def nearness(round_trip_seconds: float | None) -> int | None:
    """Return how near a node is, in tenths: 10 is here, 0 is far."""
    if round_trip_seconds is None:
        return None
    return _TENTH - min(int(_TENTH * round_trip_seconds / _FAR_SECONDS), _TENTH)


def load_of(usage: ResourceUsage, limits: Thresholds) -> Load:
    """Return all that dispatch reads from a machine's usage."""
    # Asked of every beat: `known_percent`, without a call, and figures from where the model keeps them.
    figures = usage.__dict__
    gpu, gpu_memory = figures["gpu_percent"], figures["gpu_mem_percent"]
    return (
        figures["cpu_percent"] > limits.max_cpu_percent,
        figures["mem_percent"] > limits.max_memory_percent,
        gpu is not None and gpu > limits.max_gpu_percent,
        gpu // _TENTH if gpu is not None and 0 <= gpu <= _ALL else None,
        gpu_memory // _TENTH if gpu_memory is not None and 0 <= gpu_memory <= _ALL else None,
    )
