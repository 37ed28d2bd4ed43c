"""How often each node sends a heartbeat, so that the registry never gets more than it can handle.

The interval of a settled node grows with the fleet. A node that warms up sends more often, and after a restart of the
registry all nodes warm up at once, within about a second. Their intervals are therefore spread so widely that their
second and third heartbeats stay under the rate, whenever they started. The spread has a limit: the healthy heartbeats
that a node needs must fit into its warm-up with one to spare, and the node must not look silent.
"""

from collections.abc import Callable

from gpu_agent.registry.node import NodeRecord
from gpu_agent.registry.settings import Thresholds
from gpu_agent.wire.codes import NodeStatus

# How many nodes there are to hear from, and how many of them are warming up or will be once they are back.
#
# Counted as nodes change, never by looking at all of them. Decides nothing.


class FleetCounters:
    """Counts of nodes."""

    def __init__(self) -> None:
        self._live: set[str] = set()
        self._warming: set[str] = set()

    @property
    def live(self) -> int:
        """Nodes that beat or are expected back: every one that is not offline, or whose session is open."""
        return len(self._live)

    @property
    def warming(self) -> int:
        """Those of the live that register now, or will when they are back: a restart makes it all of them."""
        return len(self._warming)

    def count(self, record: NodeRecord) -> None:
        """Count a node as it is now."""
        live = record.status is not NodeStatus.OFFLINE or record.connection is not None
        warming = live and (record.status is NodeStatus.REGISTERING or not record.connected)
        _put(self._live, record.node_id, there=live)
        _put(self._warming, record.node_id, there=warming)

    def forget(self, node_id: str) -> None:
        """Count a node no longer."""
        self._live.discard(node_id)
        self._warming.discard(node_id)


def _put(among: set[str], node_id: str, *, there: bool) -> None:
    (among.add if there else among.discard)(node_id)


# How often each node of a fleet should beat, so that the registry is never asked for more than it can do.
#
# A node that has settled beats at an interval that grows with the fleet. One that warms up beats oftener,
# and
# after a restart of the registry all of them warm up at once, having registered within a second or so.
# There
# the intervals are spread, so wide that whenever they all began, their second and third beats stay under
# the
# rate; but never so long that the healthy beats which a node needs would not fit into its warm-up with one
# to
# spare, or that it would look silent. Says how often; tells no one.


SPREAD = 0.1
"""Intervals of a large fleet differ by up to this share, so that nodes which came together drift apart."""

_SMALL_FLEET = 0.1
"""Below this share of the rate nothing needs to be spread."""

_WARMUP_SHARE = 0.25
"""So much of the rate is at hand for nodes that warm up, however many have settled."""

_WORTH_TELLING_LONGER = 0.01
_WORTH_TELLING_SHORTER = 0.25
"""A longer interval keeps the rate; a shorter one is only news, and may wait until it is much shorter."""

_FIRST_STATUS_SHARE = 0.5
"""Periodic statuses of nodes that came together are spread over the second half of the first interval."""


class Pacer:
    """Gives each node its place in the rhythm of the fleet."""

    def __init__(self, thresholds: Thresholds, census: FleetCounters, draw: Callable[[], float]) -> None:
        self._thresholds = thresholds
        self._census = census
        self._draw = draw

    def begin(self, record: NodeRecord, now: float) -> None:
        """Pace a node that registers."""
        thresholds, census = self._thresholds, self._census
        record.pace = self._draw()
        record.interval_seconds = interval_for(census.live + 1, thresholds, share=record.pace)
        record.timeout_seconds = thresholds.node_timeout_seconds(record.interval_seconds)
        record.warmup_interval_seconds = warmup_interval_for(
            census.warming + 1, thresholds, settled=census.live - census.warming, share=self._draw()
        )
        spread = _FIRST_STATUS_SHARE + (1 - _FIRST_STATUS_SHARE) * self._draw()
        record.next_status_at = now + thresholds.node_status_interval_seconds * spread

    def adjust(self, record: NodeRecord, now: float) -> None:
        """Pace a node that is about to be told its status again, as the fleet is now."""
        thresholds, given = self._thresholds, record.interval_seconds
        wanted = interval_for(self._census.live, thresholds, share=record.pace)
        if worth_telling(given, wanted):
            record.interval_seconds = wanted
        # Until it is told again, a node may still beat as it was told before.
        record.timeout_seconds = thresholds.node_timeout_seconds(max(given, record.interval_seconds))
        record.next_status_at = now + thresholds.node_status_interval_seconds


def interval_for(nodes: int, thresholds: Thresholds, *, share: float = 0.0) -> float:
    """Return the seconds between two beats of one node in a settled fleet of `nodes`.

    The configured interval as long as the fleet stays under the rate, then as much longer as
    the rate needs. `share`, drawn from 0 to 1, places the node within the spread.
    """
    configured, rate = thresholds.heartbeat_interval_seconds, thresholds.max_heartbeats_per_second
    if nodes <= configured * rate * _SMALL_FLEET:
        return configured
    return max(configured, nodes / rate) * (1 + SPREAD * share)


def warmup_interval_for(
    warming: int, thresholds: Thresholds, *, settled: int = 0, share: float = 0.0
) -> float:
    """Return the seconds between two beats of a node that is one of `warming` which register together.

    If all begin in the same instant and their intervals fill a span of S seconds evenly, then of the beats
    after the first, N - 1 each, at most (1 + 1/2 + … + 1/(N - 1)) * warming / S come in a second.
    """
    configured, rate = thresholds.warmup_heartbeat_interval_seconds, thresholds.max_heartbeats_per_second
    if warming <= configured * rate * _SMALL_FLEET:
        return configured
    room = max(rate - settled / interval_for(settled, thresholds), rate * _WARMUP_SHARE)
    overlap = sum(1 / beat for beat in range(1, thresholds.healthy_heartbeats_needed))
    span = min(overlap * warming / room, max(0.0, _longest_warmup_interval(thresholds) - configured))
    return configured + span * share


def worth_telling(given: float, wanted: float) -> bool:
    """Say whether a node that was given one interval should be told another."""
    return wanted > given * (1 + _WORTH_TELLING_LONGER) or wanted < given * (1 - _WORTH_TELLING_SHORTER)


def _longest_warmup_interval(thresholds: Thresholds) -> float:
    fitting = thresholds.warmup_timeout_seconds / (thresholds.healthy_heartbeats_needed + 1)
    return min(fitting, thresholds.heartbeat_timeout_seconds / 3)
