"""How good a node is for a job, among those eligible: one whole number, so that equal means equal.

Four shares, each with its weight from the settings: free slots, idle GPUs, free GPU memory, a short round
trip. All but the first count in tenths, so that small changes of a figure move no node. Heartbeats whose
figures fall into the same tenths, and on the same side of each limit, have the same load and change nothing
in the index.
"""

from gpu_agent.registry.node import NodeRecord
from gpu_agent.registry.settings import Thresholds
from gpu_agent.wire.messages import ResourceUsage

Load = tuple[bool, bool, bool, float | None, float | None]
"""CPU, memory and GPU over their limits; tenths of GPU use; tenths of GPU memory use."""

_TENTHS = 10
_ALL = 100
_FAR_SECONDS = 0.1
"""A node whose round trip takes this long is far; one that takes longer is no farther."""


def best_score(weights: Thresholds) -> int:
    """Return the score of an idle node; only the affinity bonus goes above it."""
    measured = weights.weight_gpu_use + weights.weight_free_memory + weights.weight_round_trip
    return weights.weight_load + measured


def score(record: NodeRecord, in_flight: int, weights: Thresholds) -> int:
    """Rate a node from 0 to the best score; an unknown figure counts as half."""
    usage = record.liveness.usage
    slots = record.declared.max_concurrent_jobs
    free = slots - in_flight
    return (
        (weights.weight_load * free // slots if free > 0 else 0)
        + _idle(None if usage is None else usage.gpu_percent, weights.weight_gpu_use)
        + _idle(None if usage is None else usage.gpu_mem_percent, weights.weight_free_memory)
        + _near(record.liveness.round_trip_seconds, weights.weight_round_trip)
    )


def load_of(usage: ResourceUsage, limits: Thresholds) -> Load:
    """Return all that dispatch reads from a node's usage."""
    # For each heartbeat: `known_percent` without a call, and figures from the model's own dictionary.
    figures = usage.__dict__
    gpu, gpu_memory = figures["gpu_percent"], figures["gpu_mem_percent"]
    return (
        figures["cpu_percent"] > limits.max_cpu_percent,
        figures["mem_percent"] > limits.max_memory_percent,
        gpu is not None and gpu > limits.max_gpu_percent,
        gpu // _TENTHS if gpu is not None and 0 <= gpu <= _ALL else None,
        gpu_memory // _TENTHS if gpu_memory is not None and 0 <= gpu_memory <= _ALL else None,
    )


def known_percent(figure: float | None) -> float | None:
    """Return a percentage; one outside 0 to 100 says nothing and is unknown."""
    return figure if figure is not None and 0 <= figure <= _ALL else None


def nearness(round_trip_seconds: float | None) -> int | None:
    """Return how near a node is, in tenths: 10 is here, 0 is far."""
    if round_trip_seconds is None:
        return None
    return _TENTHS - min(int(_TENTHS * round_trip_seconds / _FAR_SECONDS), _TENTHS)


def _idle(percent: float | None, weight: int) -> int:
    """Rate what is left of 100 %, in tenths; a tenth counts as used once it is entered."""
    known = known_percent(percent)
    if known is None:
        return weight >> 1
    return weight * (_TENTHS - int(known) // _TENTHS) // _TENTHS


def _near(round_trip_seconds: float | None, weight: int) -> int:
    near = nearness(round_trip_seconds)
    return weight >> 1 if near is None else weight * near // _TENTHS
