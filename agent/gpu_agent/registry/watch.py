"""What time alone does to a node: silence, warm-up, a drain's deadline, the periodic status, retention.

Called for the nodes whose time has come, in no particular order. Reads no clock.
"""

from collections.abc import Sequence

from gpu_agent.registry import deadlines, faults, health, silence, telling
from gpu_agent.registry.actions import Level
from gpu_agent.registry.adrift import is_adrift
from gpu_agent.registry.house import House
from gpu_agent.registry.letting_go import purge
from gpu_agent.registry.record import NodeRecord
from gpu_agent.registry.sessions import start_over
from gpu_agent.registry.step import Step
from gpu_agent.wire.codes import NodeStatus, ReasonCode


class Watch:
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
            self._house.dispatch.doubt(silence.suspected(self._house.roster.records.values(), step))
        for record in records:
            self._look_at(record, step)
            step.touched[record.node_id] = None

    def _look_at(self, record: NodeRecord, step: Step) -> None:
        now = step.now
        faults.sum_up(record, step)
        if _timed_out(record, now):
            self._time_out(record, step)
        elif is_adrift(record):
            self._lead_on(record, step)
        elif record.status is NodeStatus.REGISTERING and now >= record.warmup_until:
            self._end_warmup(record, step)
        elif record.status is NodeStatus.DRAINING:
            self._house.verdicts.settle(record, step)
        elif now >= deadlines.purge_at(record, self._thresholds):
            purge(record, self._house, why="offline for too long", step=step)
        if record.connection is not None and now >= record.next_status_at:
            self._tell_again(record, record.connection, step)

    def _time_out(self, record: NodeRecord, step: Step) -> None:
        silent = step.now - record.heard_at
        reason = f"silent for {silent:.0f} s; its timeout is {record.timeout_seconds:g} s"
        if record.status is NodeStatus.OFFLINE:
            self._house.verdicts.close(record, reason, step)
            self._house.dispatch.refresh(record)
            return
        step.note(
            "heartbeat_timeout",
            {"node_id": record.node_id, "last_seen_ms": round(silent * 1000)},
            Level.WARNING,
        )
        self._house.verdicts.give(
            record, NodeStatus.OFFLINE, ReasonCode.HEARTBEAT_TIMEOUT, reason=reason, step=step
        )

    def _lead_on(self, record: NodeRecord, step: Step) -> None:
        if record.drain is not None:
            self._house.verdicts.drain(record, step)
            return
        start_over(record, self._thresholds, step.now)
        reason = "the drain that was asked for could not be saved, and ended with that"
        self._house.verdicts.give(
            record, NodeStatus.REGISTERING, ReasonCode.RESUMED, reason=reason, step=step
        )

    def _end_warmup(self, record: NodeRecord, step: Step) -> None:
        needed, limit = self._thresholds.healthy_beats_needed, self._thresholds.warmup_timeout_seconds
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
        step.tell(
            telling.status_of(record, self._thresholds, connection=connection, now=step.now, periodic=True)
        )


def _timed_out(record: NodeRecord, now: float) -> bool:
    listening = record.connection is not None or record.status is not NodeStatus.OFFLINE
    return listening and now >= deadlines.silent_until(record)
