"""What time alone changes: timeouts, warm-up, drain deadlines, periodic statuses, retention, expired claims.

Thousands of nodes may be due in the same instant, as after a restart, and everything else waits meanwhile. So one
sweep takes a limited number and leaves the rest to the next one, which follows at once. Before the first timeout of a
sweep the registry checks whether most of the fleet is silent: then it suspects itself (§4, mass silence).
"""

from collections.abc import Iterable, Sequence
from itertools import islice
from math import inf

from gpu_agent.registry import deadlines, health
from gpu_agent.registry import registration as faults
from gpu_agent.registry import status as telling
from gpu_agent.registry.actions import Level
from gpu_agent.registry.deadlines import Deadlines
from gpu_agent.registry.node import NodeRecord
from gpu_agent.registry.registration import purge_node
from gpu_agent.registry.status import House
from gpu_agent.registry.step import Step
from gpu_agent.wire.codes import NodeStatus, ReasonCode

# What time alone does to a node: silence, warm-up, a drain's deadline, the periodic status, retention.
#
# Called for the nodes whose time has come, in no particular order. Reads no clock.


class TimeoutChecks:
    """Looks at nodes whose time has come."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._thresholds = house.thresholds
        self._suspicion_asked = False
        """True once it was asked, for those who are due together, whether most of the fleet is silent."""

    def look(self, records: Sequence[NodeRecord], step: Step, *, goes_on: bool = False) -> None:
        """Draw the consequences of the time for each of these nodes.

        `goes_on` says that they are more of those that were due at the last look: what was found of the
        fleet as a whole then is not asked again.
        """
        self._suspicion_asked = goes_on and self._suspicion_asked
        if not self._suspicion_asked and any(_timed_out(record, step.now) for record in records):
            self._suspicion_asked = True
            self._house.dispatch.doubt(suspect_silent_nodes(self._house.roster.records.values(), step))
        for record in records:
            self._look_at(record, step)
            step.touched[record.node_id] = None

    def _look_at(self, record: NodeRecord, step: Step) -> None:
        now = step.now
        faults.log_left_out_faults(record, step)
        if _timed_out(record, now):
            self._time_out(record, step)
        elif record.status is NodeStatus.REGISTERING and now >= record.warmup_until:
            self._end_warmup(record, step)
        elif record.status is NodeStatus.DRAINING:
            self._house.verdicts.settle(record, step)
        elif now >= deadlines.purge_at(record, self._thresholds):
            purge_node(record, self._house, why="offline for too long", step=step)
        if record.connection is not None and now >= record.next_status_at:
            self._tell_again(record, record.connection, step)

    def _time_out(self, record: NodeRecord, step: Step) -> None:
        silent = step.now - record.heard_at
        reason = f"silent for {silent:.0f} s; its timeout is {record.timeout_seconds:g} s"
        if record.status is NodeStatus.OFFLINE:
            self._house.verdicts.close(record, reason, step)
            self._house.dispatch.refresh(record)
            return
        step.log(
            "heartbeat_timeout",
            {"node_id": record.node_id, "last_seen_ms": round(silent * 1000)},
            Level.WARNING,
        )
        self._house.verdicts.give(
            record, NodeStatus.OFFLINE, ReasonCode.HEARTBEAT_TIMEOUT, reason=reason, step=step
        )

    def _end_warmup(self, record: NodeRecord, step: Step) -> None:
        needed, limit = self._thresholds.healthy_heartbeats_needed, self._thresholds.warmup_timeout_seconds
        reason = f"{record.healthy_beats} of {needed} healthy beats in a row within {limit:g} s"
        failing = [check for check in health.checks(record, self._thresholds) if not check.ok]
        if failing:
            reason += "; failing: " + "; ".join(f"{check.name}: {check.detail}" for check in failing)
        self._house.verdicts.give(
            record, NodeStatus.DEGRADED, ReasonCode.WARMUP_TIMEOUT, reason=reason, step=step
        )

    def _tell_again(self, record: NodeRecord, connection: int, step: Step) -> None:
        """Tell a node its status once more, and a new interval where the fleet has grown or shrunk."""
        self._house.pacer.adjust(record, step.now)
        step.add(
            telling.current_status(
                record, self._thresholds, connection=connection, now=step.now, periodic=True
            )
        )


def _timed_out(record: NodeRecord, now: float) -> bool:
    listening = record.connection is not None or record.status is not NodeStatus.OFFLINE
    return listening and now >= deadlines.silent_until(record)


# The guard against blaming the fleet for the registry's own deafness (§4, mass silence).
#
# Asked before a timeout verdict. Moves deadlines; gives no verdict itself.


FEWEST_NODES = 10
"""With fewer live nodes, most of them silent is no sign of anything."""

SILENT_INTERVALS = 2

MISSED_INTERVALS = 1.5
MISSED_SLACK_SECONDS = 1.0
"""A node that is silent for longer than so many intervals and this is disconnected (§4, Connections)."""


def suspect_silent_nodes(records: Iterable[NodeRecord], step: Step) -> list[NodeRecord]:
    """Return the nodes to wait for once more: those silent, when over half of the live ones are.

    Each is marked, which moves its deadline to its last beat + 2 timeouts and excludes it from
    dispatch as disconnected until it beats. A node is waited for once.
    """
    live, silent = 0, list[NodeRecord]()
    for record in records:  # of all nodes, while nobody else has a turn: no calls in it
        if record.status is not NodeStatus.OFFLINE:
            live += 1
            if step.now - record.heard_at > SILENT_INTERVALS * record.interval_seconds:
                silent.append(record)
    if live < FEWEST_NODES or len(silent) * 2 <= live:
        return []
    waited_for = [record for record in silent if record.suspected_until is None]
    if not waited_for:
        return []
    for record in waited_for:
        record.suspected_until = record.heard_at + 2 * record.timeout_seconds
    step.log(
        "mass_disconnect_suspected",
        {"live": live, "silent": len(silent), "waited_for": len(waited_for)},
        Level.WARNING,
    )
    return waited_for


def exclude_silent_nodes(records: Iterable[NodeRecord], now: float) -> list[NodeRecord]:
    """Return the nodes that have fallen silent while the store fails, when nothing is decided by time (§4).

    Each is marked: until it is heard it is excluded from dispatch as disconnected.
    """
    silent = [
        record
        for record in records
        if record.connection is not None
        and record.suspected_until is None
        and now - record.heard_at > MISSED_INTERVALS * record.interval_seconds + MISSED_SLACK_SECONDS
    ]
    for record in silent:
        record.suspected_until = inf
    return silent


def resume_timeouts(records: Iterable[NodeRecord], now: float, *, restarted: bool) -> list[NodeRecord]:
    """Let timeouts count again after the store has failed; returns the nodes whose deadline moved.

    After an outage that counts as a restart every node has one full timeout from now.
    """
    moved = []
    for record in records:
        if record.suspected_until is not None:
            heard_at = now if restarted else record.heard_at
            if record.suspected_until == inf or restarted:
                record.suspected_until = heard_at + record.timeout_seconds
            moved.append(record)
        elif restarted:
            record.heard_at = now
    return moved


# One round through what time has made due: claims that end, nodes to look at; a part of them at a time.
#
# Thousands may be due in the same instant, as after a restart or an outage, and everybody else waits
# while they are dealt with. So a round takes so many and leaves the rest to the next, which follows at
# once.


MOST_AT_ONCE = 64
"""Nodes that are looked at, and claims that are ended, in one round: some 10 ms of work."""


class Sweep:
    """Goes round the house."""

    def __init__(self, house: House, deadlines: Deadlines) -> None:
        self._house = house
        self._deadlines = deadlines
        self._watch = TimeoutChecks(house)
        self.unfinished = False
        """True while a round has left something that is due."""

    def go(self, step: Step) -> None:
        """Deal with what is due, or with a part of it."""
        ended = self.end_claims(step)
        reached = list(islice(self._deadlines.reached(step.now), MOST_AT_ONCE))
        records = self._house.roster.records
        looked_at = [record for node_id in reached if (record := records.get(node_id))]
        self._watch.look(looked_at, step, goes_on=self.unfinished)
        self.unfinished = MOST_AT_ONCE in (ended, len(reached))

    def end_claims(self, step: Step, *, of_job: str | None = None) -> int:
        """End claims whose time has passed, that of `of_job` in any case, and say how many ended."""
        ended = self._house.claiming.expire(step, most=MOST_AT_ONCE, of_job=of_job)
        for node_id in dict.fromkeys(claim.node_id for claim in ended):
            self._house.verdicts.settle(self._house.roster.records[node_id], step)
        return len(ended)
