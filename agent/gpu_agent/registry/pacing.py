"""How often each node sends a heartbeat, so that the registry never gets more than it can handle.

The interval of a settled node grows with the fleet. A node that warms up sends more often, and after a
restart of the registry all nodes warm up at once, within about a second. Their intervals are therefore spread
so widely that their second and third heartbeats stay under the rate, whenever they started. The spread has a
limit: the healthy heartbeats that a node needs must fit into its warm-up with one to spare, and the node must
not look silent.
"""

from collections.abc import Callable

from gpu_agent.registry.node import FleetCounters, NodeRecord
from gpu_agent.registry.settings import Thresholds

SPREAD = 0.1
"""Intervals of a large fleet differ by up to this share, so that nodes which came together drift apart."""

_SMALL_FLEET = 0.1
"""Below this share of the rate nothing needs to be spread."""

_WARMUP_SHARE = 0.25
"""Nodes that warm up may use this share of the rate, however many have settled."""

_WORTH_SENDING_LONGER = 0.01
_WORTH_SENDING_SHORTER = 0.25
"""A longer interval keeps the rate; a shorter one may wait until it is much shorter."""

_FIRST_STATUS_SHARE = 0.5
"""Periodic statuses of nodes that came together are spread over the second half of the first interval."""


class Pacer:
    """Gives each node its intervals."""

    def __init__(self, thresholds: Thresholds, counters: FleetCounters, draw: Callable[[], float]) -> None:
        self._thresholds = thresholds
        self._counters = counters
        self._draw = draw

    def begin(self, record: NodeRecord, now: float) -> None:
        """Pace a node that registers."""
        thresholds, counters, schedule = self._thresholds, self._counters, record.schedule
        schedule.share = self._draw()
        schedule.interval_seconds = interval_for(counters.live + 1, thresholds, share=schedule.share)
        schedule.timeout_seconds = thresholds.node_timeout_seconds(schedule.interval_seconds)
        schedule.warmup_interval_seconds = warmup_interval_for(
            counters.warming + 1,
            thresholds,
            settled=counters.live - counters.warming,
            share=self._draw(),
        )
        self._plan_first_status(record, now)

    def resume(self, record: NodeRecord, now: float) -> None:
        """Pace a node whose session goes on under another leader.

        The node may have received a longer interval than the one that was stored when it registered: one for
        a fleet as large as it is now.
        """
        thresholds, schedule = self._thresholds, record.schedule
        schedule.share = self._draw()
        longest = interval_for(self._counters.live, thresholds, share=1.0)
        schedule.interval_seconds = max(schedule.interval_seconds, longest)
        schedule.timeout_seconds = thresholds.node_timeout_seconds(schedule.interval_seconds)
        self._plan_first_status(record, now)

    def adjust(self, record: NodeRecord, now: float) -> None:
        """Pace a node whose periodic status is due, by the size of the fleet now."""
        thresholds, schedule = self._thresholds, record.schedule
        given = schedule.interval_seconds
        wanted = interval_for(self._counters.live, thresholds, share=schedule.share)
        if worth_sending(given, wanted):
            schedule.interval_seconds = wanted
        # Until the node receives the new interval, it may still use the one before.
        schedule.timeout_seconds = thresholds.node_timeout_seconds(max(given, schedule.interval_seconds))
        schedule.next_status_at = now + thresholds.node_status_interval_seconds

    def _plan_first_status(self, record: NodeRecord, now: float) -> None:
        spread = _FIRST_STATUS_SHARE + (1 - _FIRST_STATUS_SHARE) * self._draw()
        record.schedule.next_status_at = now + self._thresholds.node_status_interval_seconds * spread


def interval_for(nodes: int, thresholds: Thresholds, *, share: float = 0.0) -> float:
    """Return the seconds between two heartbeats of one node in a settled fleet of `nodes`.

    The configured interval while the fleet stays under the rate, then as much longer as the rate needs.
    `share`, drawn from 0 to 1, places the node within the spread.
    """
    configured, rate = thresholds.heartbeat_interval_seconds, thresholds.max_heartbeats_per_second
    if nodes <= configured * rate * _SMALL_FLEET:
        return configured
    return max(configured, nodes / rate) * (1 + SPREAD * share)


def warmup_interval_for(
    warming: int, thresholds: Thresholds, *, settled: int = 0, share: float = 0.0
) -> float:
    """Return the seconds between two heartbeats of a node that is one of `warming` which register together.

    If all begin in the same instant and their intervals fill a span of S seconds evenly, then of the
    heartbeats after the first, N - 1 each, at most (1 + 1/2 + … + 1/(N - 1)) * warming / S come in a second.
    """
    configured, rate = thresholds.warmup_heartbeat_interval_seconds, thresholds.max_heartbeats_per_second
    if warming <= configured * rate * _SMALL_FLEET:
        return configured
    room = max(rate - settled / interval_for(settled, thresholds), rate * _WARMUP_SHARE)
    overlap = sum(1 / number for number in range(1, thresholds.healthy_heartbeats_needed))
    span = min(overlap * warming / room, max(0.0, _longest_warmup_interval(thresholds) - configured))
    return configured + span * share


def worth_sending(given: float, wanted: float) -> bool:
    """Say whether a node that has one interval should receive another."""
    return wanted > given * (1 + _WORTH_SENDING_LONGER) or wanted < given * (1 - _WORTH_SENDING_SHORTER)


def _longest_warmup_interval(thresholds: Thresholds) -> float:
    fitting = thresholds.warmup_timeout_seconds / (thresholds.healthy_heartbeats_needed + 1)
    return min(fitting, thresholds.heartbeat_timeout_seconds / 3)
