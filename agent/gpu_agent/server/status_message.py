"""A fleet's `TellStatus` as the message that a node reads (§3.5): monotonic moments become wall time."""

from gpu_agent.registry.actions import TellStatus
from gpu_agent.server.clock import Clock
from gpu_agent.wire.messages import NodeStatusMessage, StatusDetails


def written(told: TellStatus, clock: Clock) -> NodeStatusMessage:
    """Write one status message, stamped with the present wall time."""
    return NodeStatusMessage(
        node_id=told.node_id,
        status=told.status.value,
        reason=told.reason,
        timestamp=round(clock.wall(), 3),
        previous_status=told.previous_status and told.previous_status.value,
        reason_code=told.reason_code.value,
        since=clock.wall_at(told.since),
        periodic=told.periodic,
        heartbeat_interval_seconds=told.heartbeat_interval_seconds,
        details=StatusDetails(
            checks=told.checks,
            healthy_beats=told.healthy_beats,
            beats_needed=told.beats_needed,
            in_flight_jobs=told.in_flight_jobs,
            drain_deadline=None if told.drain_deadline is None else clock.wall_at(told.drain_deadline),
            clears_when=told.clears_when,
        ),
    )
