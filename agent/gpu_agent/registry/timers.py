"""What time alone changes: timeouts, warm-up, drain deadlines, periodic statuses, retention, expired claims.

Thousands of nodes may be due in the same instant, as after a restart, and everything else waits meanwhile. So
one sweep takes a limited number and leaves the rest to the next one, which follows at once. Before the first
timeout of a sweep the registry checks whether most of the fleet is silent: then it suspects itself (§4, mass
silence).
"""

from collections.abc import Iterable
from itertools import islice
from math import inf
from typing import assert_never

from gpu_agent.registry import health, lifecycle, node_checks
from gpu_agent.registry.actions import Level, Step
from gpu_agent.registry.deadlines import Deadlines
from gpu_agent.registry.dispatch.dispatch import Dispatch
from gpu_agent.registry.fault_reports import log_left_out_faults
from gpu_agent.registry.node import NodeRecord, NodeTable
from gpu_agent.registry.pacing import Pacer
from gpu_agent.registry.removal import NodeRemoval
from gpu_agent.registry.settings import Thresholds
from gpu_agent.registry.status import StatusTransitions
from gpu_agent.wire.codes import NodeStatus, ReasonCode

MOST_AT_ONCE = 64
"""Nodes that are checked, and claims that are ended, in one sweep: some 10 ms of work."""

FEWEST_NODES = 10
"""With fewer live nodes, most of them silent is no sign of anything."""

SILENT_INTERVALS = 2

_MORE_TIMEOUTS = 1.5
"""Between the one timeout of every node and the two of a node that got more time."""


class Sweep:
    """Checks nodes whose time has come."""

    def __init__(
        self,
        thresholds: Thresholds,
        nodes: NodeTable,
        *,
        pacer: Pacer,
        dispatch: Dispatch,
        transitions: StatusTransitions,
        removal: NodeRemoval,
    ) -> None:
        self._thresholds = thresholds
        self._nodes = nodes
        self._pacer = pacer
        self._dispatch = dispatch
        self._transitions = transitions
        self._removal = removal
        self.deadlines = Deadlines()
        """When each node must be checked next; the fleet schedules those that an event touched."""
        self.unfinished = False
        """True while a sweep has left nodes that are due."""
        self._silence_checked = False
        """True once the nodes that are due together were checked for mass silence."""

    def run(self, step: Step) -> None:
        """Check the nodes that are due, or a part of them."""
        due = list(islice(self.deadlines.due(step.now), MOST_AT_ONCE))
        records = [record for node_id in due if (record := self._nodes.records.get(node_id))]
        self._check_silence(records, step)
        self._dispatch.update_suspected(exclude_silent_nodes(records, step.now))
        for record in records:
            self._check(record, step)
            step.touched[record.node_id] = None
        self.unfinished = len(due) == MOST_AT_ONCE

    def _check_silence(self, records: list[NodeRecord], step: Step) -> None:
        """Check for mass silence before the first timeout among nodes that are due together."""
        self._silence_checked = self.unfinished and self._silence_checked
        if not self._silence_checked and any(_timed_out(record, step.now) for record in records):
            self._silence_checked = True
            self._dispatch.update_suspected(suspect_silent_nodes(self._nodes.records.values(), step))

    def _check(self, record: NodeRecord, step: Step) -> None:
        now = step.now
        log_left_out_faults(record, step)
        if _timed_out(record, now):
            self._time_out(record, step)
        else:
            self._end_status(record, step)
        if record.connection is not None and now >= record.schedule.next_status_at:
            self._pacer.adjust(record, step.now)
            self._transitions.send(record, step, periodic=True)

    def _end_status(self, record: NodeRecord, step: Step) -> None:
        """Do what time alone does to a status, for each that `lifecycle.next_deadline` wakes the node for."""
        match record.status:
            case NodeStatus.REGISTERING:
                if step.now >= lifecycle.time_limit(record):
                    self._end_warmup(record, step)
            case NodeStatus.DRAINING:
                self._transitions.finish_drain(record, step)
            case NodeStatus.OFFLINE:
                if step.now >= lifecycle.purge_at(record, self._thresholds):
                    self._removal.purge(record, reason="offline for too long", step=step)
            case NodeStatus.READY | NodeStatus.DEGRADED:
                pass
            case _ as unreachable:
                assert_never(unreachable)

    def _time_out(self, record: NodeRecord, step: Step) -> None:
        silent = step.now - record.liveness.last_seen_at
        reason = f"silent for {silent:.0f} s; its timeout is {record.schedule.timeout_seconds:g} s"
        if record.status is NodeStatus.OFFLINE:
            self._transitions.close(record, reason, step)
            return
        fields = {"node_id": record.node_id, "last_seen_ms": round(silent * 1000)}
        step.log("heartbeat_timeout", fields, Level.WARNING)
        self._transitions.change(
            record, NodeStatus.OFFLINE, ReasonCode.HEARTBEAT_TIMEOUT, reason=reason, step=step
        )

    def _end_warmup(self, record: NodeRecord, step: Step) -> None:
        healthy, needed = record.liveness.healthy_heartbeats, self._thresholds.healthy_heartbeats_needed
        limit = self._thresholds.warmup_timeout_seconds
        reason = f"{min(healthy, needed)} of {needed} healthy heartbeats in a row within {limit:g} s"
        if node_checks.missing(record):
            reason = f"a required check has no result after {limit:g} s"
        failing = health.failing_checks(record, self._thresholds)
        if failing:
            reason += f"; failing: {failing}"
        self._transitions.change(
            record, NodeStatus.DEGRADED, ReasonCode.WARMUP_TIMEOUT, reason=reason, step=step
        )


def suspect_silent_nodes(records: Iterable[NodeRecord], step: Step) -> list[NodeRecord]:
    """Return the nodes that get more time: the silent ones, when over half of the live ones are silent.

    Each is marked. That moves its deadline to its last heartbeat + 2 timeouts, and excludes it from dispatch
    as disconnected until its next heartbeat. A node gets more time only once.
    """
    live, silent = 0, list[NodeRecord]()
    for record in records:  # all nodes in one go: no calls in this loop
        if record.status is not NodeStatus.OFFLINE:
            live += 1
            if step.now - record.liveness.last_seen_at > SILENT_INTERVALS * record.schedule.interval_seconds:
                silent.append(record)
    if live < FEWEST_NODES or len(silent) * 2 <= live:
        return []
    waited_for = [record for record in silent if not _got_more_time(record)]
    if not waited_for:
        return []
    for record in waited_for:
        extend_timeout(record)
    step.log(
        "mass_disconnect_suspected",
        {"live": live, "silent": len(silent), "waited_for": len(waited_for)},
        Level.WARNING,
    )
    return waited_for


def extend_timeout(record: NodeRecord) -> None:
    """Move a node's deadline to its last heartbeat + 2 timeouts, and suspect it until then; only once."""
    if not _got_more_time(record):
        record.liveness.suspected_until = record.liveness.last_seen_at + 2 * record.schedule.timeout_seconds


def exclude_silent_nodes(
    records: Iterable[NodeRecord], now: float, *, store_fails: bool = False
) -> list[NodeRecord]:
    """Return the connected nodes that have fallen silent (§4, Connections).

    Each is marked: until its next heartbeat it is excluded from dispatch as disconnected. Its timeout stays;
    while the store fails, time decides nothing, and it has none.
    """
    silent = [
        record
        for record in records
        if record.connection is not None
        and record.liveness.suspected_until is None
        and now > lifecycle.missed_at(record)
    ]
    for record in silent:
        liveness, timeout = record.liveness, record.schedule.timeout_seconds
        liveness.suspected_until = inf if store_fails else liveness.last_seen_at + timeout
    return silent


def resume_timeouts(records: Iterable[NodeRecord], now: float, *, restarted: bool) -> list[NodeRecord]:
    """Let timeouts count again after the store has failed; returns the nodes whose deadline moved.

    After an outage that counts as a restart every node has one full timeout from now.
    """
    moved = []
    for record in records:
        liveness = record.liveness
        if restarted:
            liveness.last_seen_at = now
        if liveness.suspected_until is not None:
            if restarted or liveness.suspected_until == inf:
                liveness.suspected_until = liveness.last_seen_at + record.schedule.timeout_seconds
            moved.append(record)
    return moved


def _got_more_time(record: NodeRecord) -> bool:
    """Say whether a silent node has more than one timeout already; an outage alone gives no more."""
    until, timeout = record.liveness.suspected_until, record.schedule.timeout_seconds
    return until is not None and until - record.liveness.last_seen_at > _MORE_TIMEOUTS * timeout


def _timed_out(record: NodeRecord, now: float) -> bool:
    may_time_out = record.connection is not None or record.status is not NodeStatus.OFFLINE
    return may_time_out and now >= lifecycle.silent_until(record)
