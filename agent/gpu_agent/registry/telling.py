"""What a node is told of its status, and the sentence that says what would change it (§3.5).

Composes; decides nothing.
"""

from typing import assert_never

from gpu_agent.registry import flapping, health
from gpu_agent.registry.actions import TellStatus
from gpu_agent.registry.quoting import sentence
from gpu_agent.registry.record import NodeRecord
from gpu_agent.registry.thresholds import Thresholds
from gpu_agent.wire.codes import NodeStatus


def status_of(
    record: NodeRecord, thresholds: Thresholds, *, connection: int, now: float, periodic: bool = False
) -> TellStatus:
    """Compose the status that a node has, as of its newest beat."""
    return TellStatus(
        connection=connection,
        node_id=record.node_id,
        status=record.status,
        reason_code=record.reason_code,
        reason=record.reason,
        since=record.since,
        previous_status=record.previous_status,
        periodic=periodic,
        heartbeat_interval_seconds=record.interval_seconds,
        checks=health.checks(record, thresholds),
        healthy_beats=record.healthy_beats,
        beats_needed=beats_needed(record, thresholds),
        in_flight_jobs=record.in_flight_jobs,
        drain_deadline=_deadline_ahead(record),
        clears_when=clears_when(record, thresholds, now),
    )


def beats_needed(record: NodeRecord, thresholds: Thresholds) -> int:
    """Return how many more healthy beats in a row make the node ready; 0 where beats do not decide."""
    if record.status in (NodeStatus.REGISTERING, NodeStatus.DEGRADED):
        return max(0, thresholds.healthy_beats_needed - record.healthy_beats)
    return 0


def clears_when(record: NodeRecord, thresholds: Thresholds, now: float) -> str | None:
    """Say what would change the status; None for a ready node, from which nothing is wanted."""
    match record.status:
        case NodeStatus.READY:
            return None
        case NodeStatus.REGISTERING | NodeStatus.DEGRADED:
            return _after_healthy_beats(record, thresholds, now)
        case NodeStatus.DRAINING:
            return _when_drained(record)
        case NodeStatus.OFFLINE:
            return _when_it_may_return(record)
        case _ as unreachable:
            assert_never(unreachable)


def _deadline_ahead(record: NodeRecord) -> float | None:
    """Return when a drain is to end; None where none is wished, or it is over."""
    over = record.status is NodeStatus.OFFLINE
    return None if record.drain is None or over else record.drain.deadline


def _after_healthy_beats(record: NodeRecord, thresholds: Thresholds, now: float) -> str:
    needed = beats_needed(record, thresholds)
    wanted = f"{needed} more healthy beats in a row" if needed > 1 else "one more healthy beat"
    until = flapping.damped_until(record, thresholds)
    if until is not None and now < until:
        exits = f"fewer than {thresholds.flap_limit} exits within {thresholds.flap_window_seconds:g} s"
        wanted = f"{wanted if needed else 'its beats stay healthy'}, and in {until - now:.0f} s, when {exits}"
        wanted += " are left"
    if record.drain is not None:
        wanted += ", and then it drains, as asked"
    failing = [check for check in health.checks(record, thresholds) if not check.ok]
    if failing:
        wanted += "; failing now: " + "; ".join(f"{check.name} ({check.detail})" for check in failing)
    return sentence(wanted)


def _when_it_may_return(record: NodeRecord) -> str:
    if record.drain is None or not record.drain.by_operator:
        return "the node registers again"
    back = "" if record.connection is not None else ", and it registers again"
    return "an operator resumes the node" + back


def _when_drained(record: NodeRecord) -> str:
    jobs = record.jobs_to_finish
    if jobs == 0 and not record.tells_its_jobs:
        return "a beat shows that no job runs, or the deadline passes: then it goes offline"
    if jobs == 0:
        return "nothing runs any more: it goes offline at once"
    running = "its last job ends" if jobs == 1 else f"its {jobs} jobs end"
    return f"{running} or the deadline passes: then it goes offline"
