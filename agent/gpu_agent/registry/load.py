"""What dispatch can tell apart in a beat's figures: beats of the same load need not be filed anew.

As coarse as the scores and limits of dispatch; a test holds the two together. Rates nothing.
"""

from gpu_agent.registry.thresholds import Thresholds
from gpu_agent.wire.messages import ResourceUsage

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
