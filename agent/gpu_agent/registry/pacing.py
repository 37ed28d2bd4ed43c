"""How often each node of a fleet should beat, so that the registry is never asked for more than it can do.

Knows nothing of single nodes; tells no one.
"""

from gpu_agent.registry.thresholds import Thresholds

MAX_BEATS_PER_SECOND = 2000.0
"""Far below what one core can take, so that a burst after an outage finds room."""

SPREAD = 0.1
"""Intervals of a large fleet differ by up to this share, so that nodes which came together drift apart."""

_SMALL_FLEET = 0.1
"""Below this share of the rate nothing needs to be spread."""

_WORTH_TELLING = 0.25
"""An interval that is off by less than this share is left alone."""


def interval_for(
    nodes: int,
    thresholds: Thresholds,
    *,
    max_beats_per_second: float = MAX_BEATS_PER_SECOND,
    share: float = 0.0,
) -> float:
    """Return the seconds between two beats of one node in a fleet of `nodes`.

    The configured interval as long as the fleet stays under the rate, then as much longer as
    the rate needs. `share`, drawn from 0 to 1, places the node within the spread.
    """
    configured = thresholds.heartbeat_interval_seconds
    if nodes <= configured * max_beats_per_second * _SMALL_FLEET:
        return configured
    return max(configured, nodes / max_beats_per_second) * (1 + SPREAD * share)


def worth_telling(given: float, wanted: float) -> bool:
    """Say whether a node that was given one interval should be told another."""
    return abs(wanted - given) > _WORTH_TELLING * given
